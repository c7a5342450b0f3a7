// A person with a keyboard and a phone's width: signs in by the one-time link,
// sees a hold arrive, approves it; denies another whose text tries to be markup.
//
// Reads one JSON line {chromium, login, ui, sandbox}; prints "hold" and "hold
// nasty" when the caller should make such a request, and "done" at the end.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [line] = await new Promise((resolve) => createInterface({ input: process.stdin }).once("line", (l) => resolve([l])));
const given = JSON.parse(line);
const patience = { timeout: 15_000 };

const browser = await chromium.launch({ executablePath: given.chromium, headless: true, chromiumSandbox: given.sandbox });
try {
  const context = await browser.newContext({ viewport: { width: 390, height: 844 }, colorScheme: "dark" });
  const complaints = [];
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
  });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`error: ${error}`));
  page.on("dialog", (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(`${given.ui}/`)) complaints.push(`asked elsewhere: ${request.url()}`);
  });

  const fits = async () => {
    const { width, wanted } = await page.evaluate(() => ({
      width: document.documentElement.clientWidth,
      wanted: document.documentElement.scrollWidth,
    }));
    assert.ok(wanted <= width, `${page.url()} is ${wanted} px wide in ${width}`);
  };
  /** Tabs until what has the focus fits `test`, which runs in the page. */
  const tabTo = async (what, test, argument) => {
    for (let presses = 0; presses < 60; presses += 1) {
      await page.keyboard.press("Tab");
      const [there, outlined] = await page.evaluate(
        ([source, given]) => {
          const element = document.activeElement;
          const shows = (pseudo) => getComputedStyle(element, pseudo).outlineStyle !== "none";
          const fits = new Function("element", "given", `return ${source}`)(element, given);
          return [fits, shows() || shows("::after")];
        },
        [test, argument],
      );
      if (there) {
        assert.ok(outlined, `${what} shows no focus`);
        return;
      }
    }
    assert.fail(`no ${what} within 60 tabs of ${page.url()}`);
  };
  const press = async (name) => {
    await tabTo(name, "element.tagName === 'BUTTON' && element.textContent.trim() === given", name);
    // The page ignores presses in its first half second.
    await page.waitForTimeout(600);
    await page.keyboard.press("Enter");
  };
  const open = async (part) => {
    const row = page.locator(`#inbox #list a[href^="/approvals/"]`, { hasText: part }).first();
    await row.waitFor(patience);
    await fits();
    const href = await row.getAttribute("href");
    await tabTo(`row ${href}`, "element.getAttribute('href') === given", href);
    await page.keyboard.press("Enter");
    await page.waitForURL(`**${href}`, patience);
    await fits();
    return href;
  };

  // The link's fragment posts itself, and is gone from the address.
  await page.goto(given.login);
  await page.waitForURL(`${given.ui}/`, patience);
  await fits();
  assert.ok((await context.cookies()).every((cookie) => cookie.httpOnly && cookie.sameSite === "Strict"));
  assert.equal(await page.evaluate(() => document.cookie), "");

  await tabTo("the approvals", "element.tagName === 'A' && element.getAttribute('href') === '/approvals'");
  await page.keyboard.press("Enter");
  await page.waitForURL(`${given.ui}/approvals`, patience);
  await page.locator("#live", { hasText: "Live." }).waitFor(patience);
  await page.evaluate(() => { window.sameDocument = true; });

  console.log("hold");
  await page.locator('#inbox a[href^="/approvals/apr_"]').first().waitFor(patience);
  assert.equal(await page.evaluate(() => window.sameDocument), true, "it came without loading the page again");
  assert.match(await page.title(), /^\(1\)/);
  const first = await open("payroll.csv");
  await press("Approve once");
  await page.locator("article[data-status=approved], article[data-status=consumed]").waitFor(patience);
  assert.equal(new URL(page.url()).pathname, first);

  await page.goto(`${given.ui}/approvals`);
  await page.locator("#live", { hasText: "Live." }).waitFor(patience);
  console.log("hold nasty");
  await open("onerror");
  assert.equal(await page.locator("main img").count(), 0, "the agent's markup is text");
  assert.ok((await page.locator("main").innerText()).includes("<img src=x onerror=alert(1)>"), "and is shown as such");
  await press("Deny");
  await page.locator("article[data-status=denied]").waitFor(patience);

  for (const path of ["/", "/audit", "/proxies", "/approvals", "/agents", "/login"]) {
    await page.goto(`${given.ui}${path}`);
    await fits();
  }
  assert.deepEqual(complaints, []);
  console.log("done");
} finally {
  await browser.close();
  process.stdin.destroy();
}
