"""Says what a Workload API socket answers to callers that break its rules.

usage: raw.py SOCKET

Prints the gRPC status of each call as JSON. Requests are empty messages, which
all of these methods parse, and replies stay bytes.
"""

import json
import sys

import grpc

HEADER = (("workload.spiffe.io", "true"),)
CALLS = {
    "x509": ("/SpiffeWorkloadAPI/FetchX509SVID", HEADER),
    "x509_without_header": ("/SpiffeWorkloadAPI/FetchX509SVID", ()),
    "x509_wrong_header": ("/SpiffeWorkloadAPI/FetchX509SVID", (("workload.spiffe.io", "yes"),)),
    "x509_bundles": ("/SpiffeWorkloadAPI/FetchX509Bundles", HEADER),
    "x509_bundles_without_header": ("/SpiffeWorkloadAPI/FetchX509Bundles", ()),
    "jwt_without_header": ("/SpiffeWorkloadAPI/FetchJWTSVID", ()),
    "jwt_without_audience": ("/SpiffeWorkloadAPI/FetchJWTSVID", HEADER),
    "jwt_bundles": ("/SpiffeWorkloadAPI/FetchJWTBundles", HEADER),
    "jwt_bundles_without_header": ("/SpiffeWorkloadAPI/FetchJWTBundles", ()),
    "validate_without_header": ("/SpiffeWorkloadAPI/ValidateJWTSVID", ()),
    "sds": ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", ()),
    "sds_once": ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", ()),
}


def status(channel: grpc.Channel, method: str, metadata: tuple) -> str:
    call = channel.stream_stream(method)(iter([b""]), timeout=5, metadata=metadata)
    try:
        next(call)
        call.cancel()
        return "OK"
    except StopIteration:
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def main() -> None:
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        print(json.dumps({name: status(channel, *call) for name, call in CALLS.items()}))


if __name__ == "__main__":
    main()
