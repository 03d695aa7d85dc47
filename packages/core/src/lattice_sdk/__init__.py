"""The life of one agent identity: enroll, tunnel up, renew, tear down."""
