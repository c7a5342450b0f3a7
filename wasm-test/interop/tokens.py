"""Introspection and revocation by requests_oauth2client: fetches a token with its own
key, asks about it, revokes it, and asks again.

Reads {issuer, client, key, url} as JSON from standard input and prints what it saw.
"""

import json
import sys

from requests_oauth2client import OAuth2Client, PrivateKeyJwt


def main() -> None:
    given = json.load(sys.stdin)
    auth = PrivateKeyJwt(given["client"], given["key"], alg="ES256", aud=given["issuer"])
    client = OAuth2Client.from_discovery_endpoint(
        f"{given['issuer']}/.well-known/oauth-authorization-server",
        issuer=given["issuer"],
        auth=auth,
        testing=True,
    )
    details = [{"type": "http_request", "actions": ["GET"], "locations": [given["url"]]}]
    token = client.client_credentials(authorization_details=json.dumps(details), dpop=True)
    before = client.introspect_token(token)
    revoked = client.revoke_access_token(token.access_token)
    after = client.introspect_token(token)
    unknown = client.introspect_token("eyJhbGciOiJub25lIn0.e30.")
    print(json.dumps({"before": before, "revoked": revoked, "after": after, "unknown": unknown}))


if __name__ == "__main__":
    main()
