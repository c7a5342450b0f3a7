// One action with the `dpop` package and plain fetch, as a client that has only
// a proof library would do it. Input and output as in oauth.mjs.
import { readFileSync } from "node:fs";
import * as DPoP from "dpop";

const given = JSON.parse(readFileSync(0, "utf8"));
const keys = await DPoP.generateKeyPair(given.alg);
const endpoint = `${given.issuer}/oauth2/token`;

const exchanged = await fetch(endpoint, {
  method: "POST",
  headers: { dpop: await DPoP.generateProof(keys, endpoint, "POST") },
  body: new URLSearchParams({
    grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
    subject_token: given.svid,
    subject_token_type: "urn:ietf:params:oauth:token-type:jwt",
    authorization_details: JSON.stringify([{ type: "http_request", actions: ["GET"], locations: [given.url] }]),
  }),
});
const { access_token: token } = await exchanged.json();

const use = async () => {
  const answer = await fetch(given.url, {
    headers: {
      authorization: `DPoP ${token}`,
      dpop: await DPoP.generateProof(keys, given.url, "GET", undefined, token),
    },
  });
  return { status: answer.status, body: await answer.text() };
};
const first = await use();
const second = await use();
console.log(JSON.stringify({ jkt: await DPoP.calculateThumbprint(keys.publicKey), first, second }));
