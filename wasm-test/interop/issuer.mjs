// An OpenID Connect issuer that others wrote. It says where it is, and then signs what
// each line of JSON on its standard input asks for: {"alg", "claims", "lives_s"}; with
// "new", under a key that nobody has seen.
import { createInterface } from "node:readline";
import { OAuth2Server } from "oauth2-mock-server";

const server = new OAuth2Server();
const keys = {
  RS256: await server.issuer.keys.generate("RS256"),
  ES256: await server.issuer.keys.generate("ES256"),
};
await server.start(0, "127.0.0.1");
server.issuer.url = `http://127.0.0.1:${server.address().port}`;
console.log(JSON.stringify({ issuer: server.issuer.url }));

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  if (asked.new) keys[asked.alg] = await server.issuer.keys.generate(asked.alg);
  const token = await server.issuer.buildToken({
    kid: keys[asked.alg].kid,
    expiresIn: asked.lives_s,
    scopesOrTransform: (_header, payload) => Object.assign(payload, asked.claims),
  });
  console.log(JSON.stringify({ token }));
}
await server.stop();
