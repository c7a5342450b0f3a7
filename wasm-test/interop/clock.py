"""A clock that is an hour off, by requests_oauth2client, which tries once more by itself when
it gets a nonce.

Reads {issuer, agent, svid, url, skew_s} as JSON from standard input and prints what it sent
and got.
"""

import json
import sys
import time

import requests
from jwskate import SignedJwt
from requests_oauth2client import DPoPKey, OAuth2Client


def main() -> None:
    given = json.load(sys.stdin)
    sent = []

    def note(response: requests.Response, **_: object) -> None:
        proof = response.request.headers.get("DPoP")
        if proof:
            claims = SignedJwt(proof).claims
            off_s = round(claims["iat"] - time.time())
            sent.append(
                {"status": response.status_code, "off_s": off_s, "nonce": "nonce" in claims}
            )

    session = requests.Session()
    session.trust_env = False
    session.hooks["response"].append(note)
    client = OAuth2Client(
        f"{given['issuer']}/oauth2/token",
        issuer=given["issuer"],
        client_id=given["agent"],
        session=session,
        testing=True,
    )
    key = DPoPKey.generate(iat_generator=lambda: int(time.time()) + given["skew_s"])
    details = [{"type": "http_request", "actions": ["GET"], "locations": [given["url"]]}]
    token = client.token_exchange(
        subject_token=given["svid"],
        subject_token_type="urn:ietf:params:oauth:token-type:jwt",
        dpop=True,
        dpop_key=key,
        authorization_details=json.dumps(details),
    )
    print(json.dumps({"sent": sent, "claims": SignedJwt(token.access_token).claims}))


if __name__ == "__main__":
    main()
