// A server by MCP's own SDK, with two tools, and what was called of them.
import { createServer } from "node:http";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import * as z from "zod";

export const serve = async (port) => {
  const called = [];
  const make = () => {
    const server = new McpServer({ name: "sums", version: "1.0.0" });
    const numbers = { a: z.number(), b: z.number() };
    for (const [name, of] of [["add", (a, b) => a + b], ["subtract", (a, b) => a - b]]) {
      server.registerTool(name, { description: name, inputSchema: numbers }, ({ a, b }) => {
        called.push([name, a, b]);
        return { content: [{ type: "text", text: String(of(a, b)) }] };
      });
    }
    return server;
  };
  const listening = createServer(async (request, response) => {
    if (request.method !== "POST") return response.writeHead(405).end();
    const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
    const server = make();
    response.on("close", () => server.close());
    await server.connect(transport);
    await transport.handleRequest(request, response);
  });
  await new Promise((resolve) => listening.listen(port, "127.0.0.1", resolve));
  const stop = () => {
    listening.closeAllConnections();
    listening.close();
  };
  return { called, stop };
};
