"""Fetches everything that a SPIFFE Workload API gives, with the public client.

usage: svid.py SOCKET AUDIENCE

Prints one JSON object; every member was fetched through the socket.
"""

import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient


def main() -> None:
    socket, audience = sys.argv[1:]
    with WorkloadApiClient(f"unix://{socket}") as client:
        x509 = client.fetch_x509_svid(timeout=10)
        x509_bundles = client.fetch_x509_bundles(timeout=10)
        jwt = client.fetch_jwt_svid(audience={audience}, timeout=10)
        jwt_bundles = client.fetch_jwt_bundles(timeout=10)
        validated = client.validate_jwt_svid(jwt.token, audience, timeout=10)
        try:
            client.validate_jwt_svid(jwt.token, "https://elsewhere.example", timeout=10)
            elsewhere = "accepted"
        except Exception as refused:  # the client has a class for each
            elsewhere = type(refused).__name__

    domain = TrustDomain(f"spiffe://{x509.spiffe_id.trust_domain.name}")
    # Verified here as well, with the keys that came: not only by the server.
    jwt_bundle = jwt_bundles.get_bundle_for_trust_domain(domain)
    local = JwtSvid.parse_and_validate(jwt.token, jwt_bundle, {audience})
    x509_bundle = x509_bundles.get_bundle_for_trust_domain(domain)
    authorities = list(x509_bundle.x509_authorities)
    for authority in authorities:
        x509.leaf.verify_directly_issued_by(authority)
    assert local.spiffe_id == SpiffeId(str(jwt.spiffe_id))

    print(
        json.dumps(
            {
                "x509_id": str(x509.spiffe_id),
                "x509_leaf": x509.leaf.public_bytes(Encoding.PEM).decode(),
                "x509_authorities": len(authorities),
                "jwt": jwt.token,
                "jwt_id": str(jwt.spiffe_id),
                "jwt_audience": sorted(jwt.audience),
                "jwt_authorities": len(jwt_bundle.jwt_authorities),
                "validated_id": str(validated.spiffe_id),
                "elsewhere": elsewhere,
            }
        )
    )


if __name__ == "__main__":
    main()
