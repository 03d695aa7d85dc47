"""Control plane and gateway as pods of the deployment's own manifests, and a Job that uses them."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
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
from support.images import server_image
from support.node import NODE_IP, Node
from support.pods import Pod
from support.waiting import wait_for

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(300)]

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
        spec["volumes"].append({"name": claim["metadata"]["name"], "emptyDir": {}})
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


class Deployment:
    """What the deployment serves.

    Attributes:
        hosts: names of its Services.
        authority: certificate of the server.
    """

    def __init__(self, server: Pod, authority: str) -> None:
        self.server, self.authority = server, authority
        self.hosts = {SERVER: server.ip}
        program = "print(open('/var/lib/lattice/admin.token').read())"
        self.admin = server.execute("server", "python3", "-c", program).strip()
        self._directory = server.volume("tls")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(
            method,
            f"https://{self.server.ip}:{PORT}{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.admin}"},
            verify=str(self._directory / "ca.crt"),
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def deployment(node: Node) -> Iterator[Deployment]:
    image = server_image(node.podman)
    tls = certificate()
    secrets = {"lattice-server-tls": tls}
    with Pod(node, stateful_set("server", image), secrets=secrets) as server:
        server.start()
        deployed = wait_for("the admin token", lambda: _deployed(server, tls["ca.crt"]), 60)
        token = deployed.request("POST", "/api/v1/tokens", {"kind": "gateway"})["token"]
        secrets["lattice-gateway-token"] = {"token": token}
        manifest = stateful_set("gateway", image)
        with Pod(node, manifest, secrets=secrets, hosts=deployed.hosts) as gateway:
            gateway.start()
            deployed.hosts[GATEWAY] = gateway.ip

            def in_step() -> bool:
                assert gateway.running("gateway"), gateway.logs("gateway")
                return httpx.get(
                    f"https://{server.ip}:{PORT}/readyz",
                    verify=str(server.volume("tls") / "ca.crt"),
                ).is_success

            wait_for("the gateway to be in step", in_step, 60)
            deployed.request("POST", "/api/v1/workspaces", {"workspaceId": "agents"})
            yield deployed


def _deployed(server: Pod, authority: str) -> Deployment | None:
    try:
        return Deployment(server, authority)
    except AssertionError:
        assert server.running("server"), server.logs("server")
        return None


def job(node: Node, deployed: Deployment, secrets: dict[str, Any], **options: Any) -> Pod:
    """A Job's pod whose agent visits itself by a name that nobody has."""
    agent = {
        "name": "agent",
        "image": node.images.agent,
        "env": [{"name": "VISIT", "value": "http://nobody.example/"}],
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


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


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


def uint(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def runs_under_an_identity(deployed: Deployment, pod: Pod) -> None:
    pod.start()
    peers = deployed.request("GET", "/api/v1/peers?workspaceId=agents")["items"]
    (peer,) = [one for one in peers if one["name"] == pod.name]
    wait_for("the agent to end", lambda: not pod.running("agent"), 60)
    assert pod.wait() == "Succeeded"
    # The gateway's pod carries the tunnel: it was proven, and refuses in the preset's name.
    (told,) = pod.told()
    assert told["status"] == 403
    assert "sandboxed" in told["answer"]
    peers = deployed.request("GET", "/api/v1/peers?workspaceId=agents")["items"]
    assert peer["peerId"] not in {one["peerId"] for one in peers}


def test_job_runs_against_the_deployment(node: Node, deployment: Deployment) -> None:
    body = {"kind": "workspace", "workspaceId": "agents"}
    token = deployment.request("POST", "/api/v1/tokens", body)["token"]
    with job(node, deployment, {"lattice-token": {"token": token}}) as pod:
        runs_under_an_identity(deployment, pod)


def test_job_enrolls_by_its_service_account_and_no_secret_exists(
    node: Node, deployment: Deployment
) -> None:
    numbers = KEY.public_key().public_numbers()
    key = {"kty": "RSA", "kid": "cluster", "alg": "RS256", "use": "sig"}
    keys = {"keys": [key | {"n": uint(numbers.n), "e": uint(numbers.e)}]}
    file = deployment.server.volume("tmp") / "cluster-keys.json"
    file.write_text(json.dumps(keys))
    file.chmod(0o644)
    trust = {
        "workspaceId": "agents",
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwksUri": "file:///tmp/cluster-keys.json",
        "claims": {"sub": "system:serviceaccount:agents:*"},
    }
    deployment.request("POST", "/api/v1/trusts", trust)
    with job(node, deployment, {}, token_audience=AUDIENCE) as pod:
        runs_under_an_identity(deployment, pod)
