"""An agent's X.509-SVID over mutual TLS, by clients that others wrote: `spiffe` fetches it,
requests shows it, requests_oauth2client gets a token with nothing else, at the endpoint that
the metadata has for that, and acts with it.

Reads {issuer, socket, url} as JSON from standard input and prints what it saw.
"""

import json
import sys
import tempfile
from pathlib import Path

import requests
from cryptography.hazmat.primitives.serialization import Encoding
from requests_oauth2client import OAuth2Client
from spiffe import TrustDomain, WorkloadApiClient


def fetched(socket: str, into: Path) -> str:
    with WorkloadApiClient(f"unix://{socket}") as client:
        svid = client.fetch_x509_svid(timeout=10)
        bundles = client.fetch_x509_bundles(timeout=10)
    svid.save(into / "chain.pem", into / "key.pem", Encoding.PEM)
    domain = TrustDomain(f"spiffe://{svid.spiffe_id.trust_domain.name}")
    authorities = bundles.get_bundle_for_trust_domain(domain).x509_authorities
    pem = b"".join(it.public_bytes(Encoding.PEM) for it in authorities)
    (into / "bundle.pem").write_bytes(pem)
    return str(svid.spiffe_id)


def main() -> None:
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as name:
        files = Path(name)
        agent = fetched(given["socket"], files)
        session = requests.Session()
        session.trust_env = False
        session.cert = (str(files / "chain.pem"), str(files / "key.pem"))
        session.verify = str(files / "bundle.pem")

        # RFC 8705, section 5.
        metadata = session.get(
            f"{given['issuer']}/.well-known/oauth-authorization-server", timeout=30
        ).json()
        aliases = metadata["mtls_endpoint_aliases"]
        client = OAuth2Client(
            aliases["token_endpoint"],
            introspection_endpoint=aliases["introspection_endpoint"],
            client_id=agent,
            session=session,
            dpop_bound_access_tokens=True,
            testing=True,
        )
        details = [{"type": "http_request", "actions": ["GET"], "locations": [given["url"]]}]
        asked = {"authorization_details": json.dumps(details), "dpop": True}
        token = client.client_credentials(**asked)
        known = client.introspect_token(token)
        answer = session.get(given["url"], auth=token, timeout=30)

        # The certificate is needed there as well: one without is no caller.
        other = client.client_credentials(**asked)
        try:
            bare = requests.get(given["url"], auth=other, verify=session.verify, timeout=30)
            without = bare.status_code
        except (requests.exceptions.SSLError, requests.exceptions.ConnectionError) as refused:
            without = type(refused).__name__
    print(
        json.dumps(
            {
                "agent": agent,
                "method": metadata["token_endpoint_auth_methods_supported"],
                "endpoint": aliases["token_endpoint"],
                "token": token.access_token,
                "token_type": token.token_type,
                "known": known,
                "status": answer.status_code,
                "body": answer.text,
                "without": without,
            }
        )
    )


if __name__ == "__main__":
    main()
