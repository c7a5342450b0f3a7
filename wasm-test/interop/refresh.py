"""Refresh tokens by requests_oauth2client, whose client authenticates by its key each time: it
rotates twice, acts with the last one, and then somebody shows the first one again.

Reads {issuer, client, key, url} as JSON from standard input and prints what it saw.
"""

import json
import sys

import requests
from requests_oauth2client import BearerToken, OAuth2Client, OAuth2Error, PrivateKeyJwt


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
    asked = {"authorization_details": json.dumps(details)}

    def refused(token: BearerToken) -> dict:
        try:
            client.refresh_token(token, **asked)
        except OAuth2Error as problem:
            return {"error": problem.error, "reason": problem.response.json()["reason"]}
        return {"error": "none"}

    tokens = [client.client_credentials(dpop=True, **asked)]
    for _ in range(2):
        tokens.append(client.refresh_token(tokens[-1], **asked))
    assert len({token.refresh_token for token in tokens}) == 3, "each is another"
    answer = requests.get(given["url"], auth=tokens[2], timeout=30)
    print(
        json.dumps(
            {
                "acted": {"status": answer.status_code},
                "reuse": refused(tokens[0]),
                "family": refused(tokens[2]),
            }
        )
    )


if __name__ == "__main__":
    main()
