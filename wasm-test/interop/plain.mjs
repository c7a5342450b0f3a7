// MCP's own SDK, in both its lines, as an agent that knows nothing of Writ: the client is
// pointed at a URL and calls a tool.
//
// Reads {url, port} as JSON from standard input: `port` is where the server listens, `url` what
// the clients call. Prints what they saw as JSON.
import * as v1 from "@modelcontextprotocol/sdk/client/index.js";
import * as v1http from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import * as v2 from "@modelcontextprotocol/client";
import { given, tell } from "./common.mjs";
import { serve } from "./sums.mjs";

const { called, stop } = await serve(given.port);
const seen = {};
for (const [line, sdk] of Object.entries({ v1: { ...v1, ...v1http }, v2 })) {
  const client = new sdk.Client({ name: "agent", version: "1.0.0" });
  await client.connect(new sdk.StreamableHTTPClientTransport(new URL(given.url)));
  const { tools } = await client.listTools();
  const { content } = await client.callTool({ name: "add", arguments: { a: 1, b: 2 } });
  seen[line] = { tools: tools.map(({ name }) => name), sum: content[0].text };
  await client.close().catch(() => {});
}
stop();
tell({ ...seen, called });
process.exit(0);
