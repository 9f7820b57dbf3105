"""Times refusals of wrong tokens, those that differ from a right one at the end against those that differ at the beginning, in turns on one
connection. Ends with 1 when their medians differ by more than halves of the same kind do."""

import http.client
import statistics
import sys
import time
import urllib.parse

ROUNDS = 3_000


def main() -> int:
    url, token = urllib.parse.urlparse(sys.argv[1]), sys.argv[2]
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
    turned = lambda c: "A" if c != "A" else "B"
    at = len("hth_")
    wrong = {"at the beginning": token[:at] + turned(token[at]) + token[at + 1 :], "at the end": token[:-1] + turned(token[-1])}
    times = {kind: [] for kind in wrong}
    for turn in range(ROUNDS):
        for kind, guess in wrong.items():
            began = time.perf_counter_ns()
            connection.request("GET", "/v1/tenants", headers={"authorization": f"Bearer {guess}"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 401:
                print(f"a wrong token was answered {answer.status}")
                return 1
            if turn >= ROUNDS // 10:
                times[kind].append((time.perf_counter_ns() - began) / 1_000)
    medians = {kind: statistics.median(all) for kind, all in times.items()}
    halves = [statistics.median(half) for all in times.values() for half in (all[::2], all[1::2], all[: len(all) // 2], all[len(all) // 2 :])]
    noise = max(halves) - min(halves)
    apart = abs(medians["at the beginning"] - medians["at the end"])
    print(", ".join(f"wrong {kind}: {median:.1f} us" for kind, median in medians.items()), f"(apart {apart:.1f} us, noise {noise:.1f} us)")
    # Two per cent is what a scheduler does to a median; a byte-by-byte comparison over a network would have to show above it.
    return 0 if apart <= max(noise, 0.02 * min(medians.values())) else 1


sys.exit(main())
