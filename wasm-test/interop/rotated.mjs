// A resource server's own look at tokens: jose's remote key set, which lives while keys are
// rotated. Reads one JSON line {jwks, issuer} and then a token a line; for each it says which
// key it was, or why not, and how often the keys were fetched until then.
import { createInterface } from "node:readline";
import { createRemoteJWKSet, customFetch, decodeProtectedHeader, jwtVerify } from "jose";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const given = JSON.parse((await lines.next()).value);
let fetched = 0;
// By default it asks no more often than every 30 s; the keys may change every 5 s.
const jwks = createRemoteJWKSet(new URL(given.jwks), {
  cooldownDuration: 5_000,
  [customFetch]: (url, options) => {
    fetched += 1;
    return fetch(url, options);
  },
});
for await (const token of lines) {
  const said = { kid: decodeProtectedHeader(token).kid };
  try {
    const { protectedHeader } = await jwtVerify(token, jwks, { issuer: given.issuer, typ: "at+jwt" });
    said.verified = protectedHeader.kid;
  } catch (error) {
    said.code = error.code ?? String(error);
  }
  console.log(JSON.stringify({ ...said, fetched }));
}
