// From a guarded URL alone to its action: who issues tokens for it is found by RFC 9728, by
// oauth4webapi and by both lines of MCP's SDK, which agree.
//
// Reads {resource, endpoint, agent, svid, url} as JSON from standard input: `endpoint` is what
// an MCP client would be pointed at. Prints what each saw as JSON.
import assert from "node:assert/strict";
import * as oauth from "oauth4webapi";
import * as v1 from "@modelcontextprotocol/sdk/client/auth.js";
import { checkResourceAllowed, resourceUrlFromServerUrl } from "@modelcontextprotocol/sdk/shared/auth-utils.js";
import * as v2 from "@modelcontextprotocol/client";
import { EXCHANGE, TYPE, discovered, get, given, http, tell, used } from "./common.mjs";

const resource = new URL(given.resource);
const found = await oauth.processResourceDiscoveryResponse(
  resource,
  await oauth.resourceDiscoveryRequest(resource, http),
);
assert.equal(found.authorization_servers.length, 1);
assert.ok(found.dpop_signing_alg_values_supported.includes("ES256"));
const as = await discovered(found.authorization_servers[0]);
for (const type of found.authorization_details_types_supported) {
  assert.ok(as.authorization_details_types_supported.includes(type), `${type} is issued`);
}

const client = { client_id: given.agent };
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
const parameters = new URLSearchParams({
  subject_token: given.svid,
  subject_token_type: `${TYPE}jwt`,
  resource: found.resource,
  authorization_details: get(given.url),
});
const answer = await oauth.genericTokenEndpointRequest(as, client, oauth.None(), EXCHANGE, parameters, {
  DPoP,
  ...http,
});
const token = await oauth.processGenericTokenEndpointResponse(as, client, answer);
assert.equal(oauth.getValidatedIdTokenClaims(token), undefined);
const acted = await used(token.access_token, given.url, DPoP);

// What MCP's SDK would go by: the metadata of the resource, and that it is the endpoint's.
const mcp = {};
for (const [line, sdk] of Object.entries({ v1, v2 })) {
  const known = await sdk.discoverOAuthProtectedResourceMetadata(given.endpoint);
  const info = await sdk.discoverOAuthServerInfo(given.endpoint);
  assert.deepEqual(info.resourceMetadata, known);
  mcp[line] = {
    resource: known.resource,
    bound: known.dpop_bound_access_tokens_required,
    server: info.authorizationServerUrl,
    token_endpoint: info.authorizationServerMetadata?.token_endpoint,
    allowed: checkResourceAllowed({
      requestedResource: resourceUrlFromServerUrl(given.endpoint),
      configuredResource: known.resource,
    }),
  };
}
tell({ issuer: as.issuer, token_endpoint: as.token_endpoint, bound: found.dpop_bound_access_tokens_required, acted, mcp });
