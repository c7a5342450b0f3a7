"""Asks an AuthZEN decision point, by decern's client for AuthZEN 1.0, which knows nothing of
Writ. The connection is the agent's: `spiffe` fetches its X.509-SVID, and urllib, which the
client stands on, shows that and a DPoP proof of each request.

Reads {issuer, socket, questions} as JSON from standard input, a question being {subject, action,
resource}, and prints each answer.
"""

import json
import ssl
import sys
import tempfile
import urllib.request
from pathlib import Path

from certificate import fetched
from decern import Client, DecernError
from requests_oauth2client import DPoPKey


class Proving(urllib.request.BaseHandler):
    """Proves the key with each request (RFC 9449)."""

    def __init__(self) -> None:
        self.key = DPoPKey.generate()

    def https_request(self, request: urllib.request.Request) -> urllib.request.Request:
        proof = self.key.proof(htm=request.get_method(), htu=request.full_url)
        request.add_unredirected_header("DPoP", str(proof))
        return request


def main() -> None:
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as name:
        files = Path(name)
        fetched(given["socket"], files)
        context = ssl.create_default_context(cafile=str(files / "bundle.pem"))
        context.load_cert_chain(files / "chain.pem", files / "key.pem")
    direct = urllib.request.ProxyHandler({})
    handlers = (direct, urllib.request.HTTPSHandler(context=context), Proving())
    urllib.request.install_opener(urllib.request.build_opener(*handlers))

    found = f"{given['issuer']}/.well-known/authzen-configuration"
    with urllib.request.urlopen(found) as answer:
        metadata = json.load(answer)
    client = Client(given["at"])
    answers = []
    for question in given["questions"]:
        try:
            said = client.evaluate(**question)
            answers.append({"allowed": said.allowed, "context": said.context})
        except DecernError as problem:
            answers.append({"status": problem.status_code, "body": json.loads(problem.body)})
    print(json.dumps({"metadata": metadata, "answers": answers}))


if __name__ == "__main__":
    main()
