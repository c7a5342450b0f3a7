// What the scripts here have in common: their input, the token endpoint as a client finds
// it, and a refusal as it tells it.
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";

export const given = JSON.parse(readFileSync(0, "utf8"));
export const http = { [oauth.allowInsecureRequests]: true };
export const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
export const TYPE = "urn:ietf:params:oauth:token-type:";

export const discovered = async (url) => {
  const issuer = new URL(url);
  const found = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
  return oauth.processDiscoveryResponse(issuer, found);
};

export const get = (url) => JSON.stringify([{ type: "http_request", actions: ["GET"], locations: [url] }]);

// A request with a token: its status, and where it is refused the reason.
export const used = async (token, url, DPoP) => {
  try {
    const answer = await oauth.protectedResourceRequest(token, "GET", new URL(url), undefined, undefined, {
      DPoP,
      ...http,
    });
    return { status: answer.status };
  } catch (error) {
    if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
    return { status: error.status, reason: (await error.response.json()).reason };
  }
};

// What a token endpoint's refusal says, as the library reads it.
export const refusal = async (promise) => {
  try {
    await promise;
  } catch (error) {
    if (error.error === undefined) throw error;
    return { error: error.error, reason: error.cause?.reason };
  }
  return { error: "none" };
};

export const tell = (seen) => console.log(JSON.stringify(seen));
