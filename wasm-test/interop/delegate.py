"""A delegation and a broker session by requests_oauth2client: an agent lets another do
something, the other acts; and it gets a session, and acts by that.

Reads {issuer, agent, child, svid, child_svid, url, over} as JSON from standard input and prints
what it saw.
"""

import json
import sys

import requests
from requests_oauth2client import DPoPKey, OAuth2Client

TYPE = "urn:ietf:params:oauth:token-type:"
DELEGATION = "urn:writ:params:oauth:token-type:delegation"


def main() -> None:
    given = json.load(sys.stdin)

    def client(name: str) -> OAuth2Client:
        return OAuth2Client(
            f"{given['issuer']}/oauth2/token",
            issuer=given["issuer"],
            client_id=name,
            testing=True,
        )

    def details(element: dict) -> str:
        return json.dumps([element])

    get = details({"type": "http_request", "actions": ["GET"], "locations": [given["url"]]})
    agent, child = client(given["agent"]), client(given["child"])
    own, other = DPoPKey.generate(), DPoPKey.generate()
    delegation = agent.token_exchange(
        subject_token=given["svid"],
        subject_token_type=TYPE + "jwt",
        requested_token_type=DELEGATION,
        dpop=True,
        dpop_key=own,
        authorization_details=details(
            {
                "type": "delegation",
                "delegate": given["child"],
                "actions": ["GET"],
                "locations": [given["over"]],
            }
        ),
    )
    acting = child.token_exchange(
        subject_token=delegation.access_token,
        subject_token_type=DELEGATION,
        actor_token=given["child_svid"],
        actor_token_type=TYPE + "jwt",
        dpop=True,
        dpop_key=other,
        authorization_details=get,
    )
    session = agent.token_exchange(
        subject_token=given["svid"],
        subject_token_type=TYPE + "jwt",
        audience=given["issuer"],
        dpop=True,
        dpop_key=own,
    )
    within = agent.token_exchange(
        subject_token=session.access_token,
        subject_token_type=TYPE + "access_token",
        dpop=True,
        dpop_key=own,
        authorization_details=get,
    )
    use = lambda token: requests.get(given["url"], auth=token, timeout=30).status_code
    print(
        json.dumps(
            {
                "delegation": [delegation.token_type, delegation.issued_token_type],
                "child": use(acting),
                "session": [session.token_type, session.issued_token_type],
                "within": use(within),
            }
        )
    )


if __name__ == "__main__":
    main()
