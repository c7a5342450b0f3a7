"""Acts for a user, by requests_oauth2client, which knows nothing of Writ.

Reads {endpoint, issuer, url, client, key, user, actor, id_jag} as JSON from standard input
and prints what it saw as JSON. With `actor` it exchanges the user's token (RFC 8693); with
`id_jag` it authenticates by its key and uses that as a grant (RFC 7523).
"""

import json
import sys

import requests
from jwskate import Jwk
from requests_oauth2client import OAuth2Client, OAuth2Error, PrivateKeyJwt

TYPE = "urn:ietf:params:oauth:token-type:"


def main() -> None:
    given = json.load(sys.stdin)
    details = [
        {"type": "http_request", "actions": ["GET"], "locations": [given["url"]]}
    ]
    asked = {"authorization_details": json.dumps(details)}
    common = {"issuer": given["issuer"], "dpop_bound_access_tokens": True, "testing": True}
    if "id_jag" in given:
        # For the issuer alone (draft-ietf-oauth-rfc7523bis), which is not its default.
        auth = PrivateKeyJwt(given["client"], Jwk(given["key"]), aud=given["issuer"])
        client = OAuth2Client(given["endpoint"], auth, **common)
        get = lambda: client.jwt_bearer(given["id_jag"], dpop=True, **asked)
    else:
        client = OAuth2Client(given["endpoint"], client_id=given["client"], **common)
        get = lambda: client.token_exchange(
            subject_token=given["user"],
            subject_token_type=TYPE + "id_token",
            actor_token=given["actor"],
            actor_token_type=TYPE + "jwt",
            dpop=True,
            **asked,
        )
    token = get()
    answer = requests.get(given["url"], auth=token, timeout=30)
    seen = {"status": answer.status_code, "token": token.access_token}
    if "id_jag" in given:
        try:
            get()
            seen["again"] = "issued"
        except OAuth2Error as refused:
            seen["again"] = type(refused).__name__
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
