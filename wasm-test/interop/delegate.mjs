// A delegation and a broker session, by oauth4webapi and by openid-client: an agent lets
// another do something, the other acts; and it gets a session, and acts by that.
//
// Reads {issuer, agent, child, svid, child_svid, url, over} as JSON from standard input and
// prints what each saw as JSON.
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { EXCHANGE, TYPE, discovered, get, given, http, tell, used } from "./common.mjs";

const DELEGATION = "urn:writ:params:oauth:token-type:delegation";
const as = await discovered(given.issuer);
const element = { type: "delegation", delegate: given.child, actions: ["GET"], locations: [given.over], uses: 2 };
const forms = {
  delegation: {
    subject_token: given.svid,
    subject_token_type: `${TYPE}jwt`,
    requested_token_type: DELEGATION,
    authorization_details: JSON.stringify([element]),
  },
  by_child: (delegation) => ({
    subject_token: delegation,
    subject_token_type: DELEGATION,
    actor_token: given.child_svid,
    actor_token_type: `${TYPE}jwt`,
    authorization_details: get(given.url),
  }),
  session: {
    subject_token: given.svid,
    subject_token_type: `${TYPE}jwt`,
    audience: given.issuer,
  },
  within: (session) => ({
    subject_token: session,
    subject_token_type: `${TYPE}access_token`,
    authorization_details: get(given.url),
  }),
};

// Each client has a key of its own, and asks for what a form says.
const byOauth = async (name) => {
  const client = { client_id: name };
  const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
  const ask = async (form, options) => {
    const parameters = new URLSearchParams(form);
    const answer = await oauth.genericTokenEndpointRequest(as, client, oauth.None(), EXCHANGE, parameters, {
      DPoP,
      ...http,
    });
    return oauth.processGenericTokenEndpointResponse(as, client, answer, options);
  };
  return { DPoP, ask };
};
const byOpenid = async (name) => {
  const config = await openid.discovery(new URL(given.issuer), name, undefined, openid.None(), {
    algorithm: "oauth2",
    execute: [openid.allowInsecureRequests],
  });
  const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair("ES256"));
  return { DPoP, ask: (form) => openid.genericGrantRequest(config, EXCHANGE, form, { DPoP }) };
};

const seen = {};
for (const [library, by] of Object.entries({ oauth: byOauth, openid: byOpenid })) {
  const [agent, child] = [await by(given.agent), await by(given.child)];
  // oauth4webapi has to be told of `N_A` (RFC 8693, section 2.2.1); openid-client knows it.
  const known = { recognizedTokenTypes: { n_a: () => {} } };
  const delegation = await agent.ask(forms.delegation, known);
  const acting = await child.ask(forms.by_child(delegation.access_token));
  const session = await agent.ask(forms.session);
  const within = await agent.ask(forms.within(session.access_token));
  seen[library] = {
    delegation: [delegation.token_type, delegation.issued_token_type, delegation.authorization_details[0].uses],
    child: await used(acting.access_token, given.url, child.DPoP),
    session: [session.token_type, session.issued_token_type],
    within: await used(within.access_token, given.url, agent.DPoP),
    session_at_the_edge: await used(session.access_token, given.url, agent.DPoP),
  };
}
const untold = await byOauth(given.agent);
const refused = await untold.ask(forms.delegation).then(() => "taken", (error) => String(error.message));
tell({ ...seen, untold: refused });
