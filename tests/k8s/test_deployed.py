"""Control plane and gateway as pods of the deployment's own manifests, and a Job that uses them."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from lattice_k8s_job.inject import Options, inject
from support.escaping import neighbour, try_to_escape
from support.images import server_image
from support.networkpolicy import enforced
from support.node import NODE_IP, Node, wait_for
from support.pods import Pod

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

DEPLOY = Path(__file__).parent.parent.parent / "packages" / "k8s-job" / "deploy"
SERVER = "lattice-server.lattice-system.svc"
GATEWAY = "lattice-gateway.lattice-system.svc"
PORT = 8420  # of the container: here is no Service that would make 443 of it
ISSUER, AUDIENCE = "https://kubernetes.default.svc.cluster.local", "lattice"


def stateful_set(name: str, image: str) -> dict[str, Any]:
    """The StatefulSet of the deployment, with volumes for its claims."""
    documents = yaml.safe_load_all((DEPLOY / name / f"{name}.yaml").read_text())
    (found,) = [one for one in documents if one["kind"] == "StatefulSet"]
    spec = found["spec"]["template"]["spec"]
    for claim in found["spec"]["volumeClaimTemplates"]:
        name_of = claim["metadata"]["name"]
        spec["volumes"].append({"name": name_of, "persistentVolumeClaim": {"claimName": name_of}})
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        container["image"] = image
        container["args"] = [
            argument.replace(f"https://{SERVER}", f"https://{SERVER}:{PORT}")
            for argument in container["args"]
        ]
    return found


def certificate() -> dict[str, str]:
    """A Secret as cert-manager makes it, for the server's name and for this test's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName(SERVER), *(x509.IPAddress(one) for one in ADDRESSES)]
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return {"tls.crt": made, "tls.key": private, "ca.crt": made}


# The server's pod gets one of these.
ADDRESSES = [*ipaddress.ip_network(f"{NODE_IP}/24", strict=False).hosts()]


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def cluster_keys() -> str:
    """What ``kubectl get --raw /openid/v1/jwks`` tells of a cluster that signs with ``KEY``."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    return json.dumps({"keys": [key | {"kid": "cluster", "alg": "RS256", "use": "sig"}]})


class Deployment:
    """What the deployment serves.

    Attributes:
        pods: of server and gateway.
        hosts: names of its Services.
        authority: certificate of the server.
    """

    def __init__(self, server: Pod, authority: str) -> None:
        self.server, self.authority = server, authority
        self.pods = [server]
        self.hosts = {SERVER: server.ip}
        program = "print(open('/var/lib/lattice/admin.token').read())"
        self.admin = server.execute("server", "python3", "-c", program).strip()

    def client(self) -> httpx.Client:
        """To the server, which is who its certificate says."""
        return httpx.Client(
            base_url=f"https://{self.server.ip}:{PORT}",
            verify=ssl.create_default_context(cadata=self.authority),
        )

    def request(self, method: str, path: str, body: Any = None) -> Any:
        with self.client() as http:
            answer = http.request(
                method, path, json=body, headers={"Authorization": f"Bearer {self.admin}"}
            )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def peers(self, pod: Pod) -> list[dict[str, Any]]:
        """The identities of a pod."""
        page = self.request("GET", "/api/v1/peers?workspaceId=agents&limit=500")
        return [peer for peer in page["items"] if peer["name"] == pod.name]


@pytest.fixture(scope="module")
def deployment(node: Node) -> Iterator[Deployment]:
    image = server_image(node.podman)
    tls = certificate()
    secrets = {"lattice-server-tls": tls}
    keys = {"lattice-cluster-keys": {"cluster-keys.json": cluster_keys()}}
    manifest = stateful_set("server", image)
    with Pod(node, manifest, secrets=secrets, config_maps=keys) as server:
        server.start()
        deployed = wait_for("the server to serve", lambda: _deployed(server, tls["ca.crt"]), 60)
        token = deployed.request("POST", "/api/v1/tokens", {"kind": "gateway"})["token"]
        secrets["lattice-gateway-token"] = {"token": token}
        manifest = stateful_set("gateway", image)
        with Pod(node, manifest, secrets=secrets, hosts=deployed.hosts) as gateway:
            gateway.start()
            deployed.hosts[GATEWAY] = gateway.ip
            deployed.pods.append(gateway)

            def in_step() -> bool:
                assert gateway.running("gateway"), gateway.logs("gateway")
                with deployed.client() as http:
                    return http.get("/readyz").is_success

            wait_for("the gateway to be in step", in_step, 60)
            deployed.request("POST", "/api/v1/workspaces", {"workspaceId": "agents"})
            yield deployed


def _deployed(server: Pod, authority: str) -> Deployment | None:
    try:
        deployed = Deployment(server, authority)
        with deployed.client() as http:
            http.get("/healthz").raise_for_status()
    except (AssertionError, httpx.TransportError):
        assert server.running("server"), server.logs("server")
        return None
    return deployed


def job(
    node: Node, deployed: Deployment, secrets: dict[str, Any], rounds: int = 1, **options: Any
) -> Pod:
    """A Job's pod whose agent visits a name that nobody has."""
    environment = {"VISIT": "http://nobody.example/", "ROUNDS": str(rounds), "PAUSE": "0.2"}
    agent = {
        "name": "agent",
        "image": node.images.agent,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "deployed"},
        "spec": {"template": {"spec": {"containers": [agent], "restartPolicy": "Never"}}},
    }
    chosen = Options(
        server=f"https://{SERVER}:{PORT}", image=node.images.lattice, ca="authority", **options
    )
    return Pod(
        node,
        yaml.safe_load(inject(yaml.safe_dump(manifest), chosen).text),
        secrets=secrets,
        config_maps={"authority": {"ca.crt": deployed.authority}},
        hosts=deployed.hosts,
        service_account=service_account,
    )


def service_account(audience: str) -> str:
    """What the kubelet mounts: a token of the pod's service account for an audience."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": "system:serviceaccount:agents:report",
        "aud": [audience],
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "kubernetes.io": {"namespace": "agents", "serviceaccount": {"name": "report"}},
    }
    return jwt.encode(claims, KEY, algorithm="RS256", headers={"kid": "cluster"})


def runs_under_an_identity(deployed: Deployment, pod: Pod) -> None:
    pod.start()
    assert len(deployed.peers(pod)) == 1
    wait_for("the agent to end", lambda: not pod.running("agent"), 60)
    assert pod.wait() == "Succeeded"
    # The gateway's pod carries the tunnel: it was proven, and refuses in the preset's name.
    (told,) = pod.told()
    assert told["status"] == 403
    assert "sandboxed" in told["answer"]
    assert deployed.peers(pod) == []


def test_job_runs_against_the_deployment(node: Node, deployment: Deployment) -> None:
    body = {"kind": "workspace", "workspaceId": "agents"}
    token = deployment.request("POST", "/api/v1/tokens", body)["token"]
    with job(node, deployment, {"lattice-token": {"token": token}}) as pod:
        runs_under_an_identity(deployment, pod)


def test_network_policy_leaves_an_agent_of_mode_proxy_only_the_tunnel(
    node: Node, deployment: Deployment
) -> None:
    policy = yaml.safe_load((DEPLOY / "agents" / "networkpolicy.yaml").read_text())
    body = {"kind": "workspace", "workspaceId": "agents"}
    secrets = {"lattice-token": deployment.request("POST", "/api/v1/tokens", body)}
    with job(node, deployment, secrets, rounds=600) as pod, neighbour() as ports:
        pod.create()
        with enforced(policy, pod, deployment.pods):
            pod.start()
            wait_for("the agent to be refused by the gateway", pod.told, 30)
            (peer,) = deployment.peers(pod)
            found = try_to_escape(pod, ports, deployment.server)
            ways = {"TCP to the node", "UDP to the node", "TCP bound to eth0", "TCP to another pod"}
            assert ways <= found.keys()
            assert not [name for name in ways if found[name] == "True"], found
            # The tunnel is there as before, and so is the way to give it back.
            count = len(pod.told())
            wait_for("visits after all", lambda: len(pod.told()) > count, 30)
            assert {told["status"] for told in pod.told()} == {403}
            pod.delete(grace=1)
            wait_for("the identity to be gone", lambda: not deployment.peers(pod))
        assert peer["policyPreset"] == "sandboxed"


def test_job_enrolls_by_its_service_account_and_no_secret_exists(
    node: Node, deployment: Deployment
) -> None:
    trust = {
        "workspaceId": "agents",
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwksUri": "file:///etc/lattice/cluster-keys.json",
        "claims": {"sub": "system:serviceaccount:agents:*"},
    }
    deployment.request("POST", "/api/v1/trusts", trust)
    with job(node, deployment, {}, token_audience=AUDIENCE) as pod:
        runs_under_an_identity(deployment, pod)
