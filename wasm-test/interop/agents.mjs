// The registry at a keyboard: finds an agent, reads its page, suspends it and lets it act
// again; in light and dark, at a phone's width and a wide one, and without scripts.
//
// Reads one JSON line {chromium, login, ui, sandbox, agent, shots}; prints "suspended" once
// the agent is, waits for a line, and prints "done" at the end.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const given = JSON.parse((await lines.next()).value);
const patience = { timeout: 15_000 };
const LOOKS = [
  { name: "phone-light", width: 360, height: 780, colorScheme: "light" },
  { name: "phone-dark", width: 360, height: 780, colorScheme: "dark" },
  { name: "wide-light", width: 1280, height: 900, colorScheme: "light" },
  { name: "wide-dark", width: 1280, height: 900, colorScheme: "dark" },
];

const browser = await chromium.launch({ executablePath: given.chromium, headless: true, chromiumSandbox: given.sandbox });
try {
  const complaints = [];
  const watched = async (context) => {
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
    return page;
  };
  const context = await browser.newContext({ viewport: { width: 390, height: 844 } });
  const page = await watched(context);
  const tabTo = async (what, test, argument) => {
    for (let presses = 0; presses < 60; presses += 1) {
      await page.keyboard.press("Tab");
      const [there, outlined] = await page.evaluate(
        ([source, given]) => {
          const element = document.activeElement;
          const shows = (pseudo) => getComputedStyle(element, pseudo).outlineStyle !== "none";
          return [new Function("element", "given", `return ${source}`)(element, given), shows() || shows("::after")];
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
  const named = "['A', 'BUTTON'].includes(element.tagName) && element.textContent.trim() === given";
  const press = async (name) => {
    await tabTo(name, named, name);
    // The page ignores presses in its first half second.
    await page.waitForTimeout(600);
    await page.keyboard.press("Enter");
  };
  const state = (word) => page.locator(`#main .state.${word}`).first().waitFor(patience);

  await page.goto(given.login);
  await page.waitForURL(`${given.ui}/`, patience);
  await tabTo("the agents", "element.tagName === 'A' && element.getAttribute('href') === '/agents'");
  await page.keyboard.press("Enter");
  await page.waitForURL(`${given.ui}/agents`, patience);

  await tabTo("the text", "element.id === 'text'");
  await page.keyboard.type("nothing-like-it");
  await page.keyboard.press("Enter");
  await page.locator("text=No agent is here that fits.").waitFor(patience);
  await press("Show all");
  await page.waitForURL(`${given.ui}/agents`, patience);
  await tabTo("the state", "element.id === 'state'");
  await page.keyboard.type("Active");
  await press("Show");
  await page.waitForURL(/state=active/, patience);
  await tabTo("the agent", "element.textContent.trim() === given", given.agent);
  await page.keyboard.press("Enter");
  await state("active");
  assert.equal(await page.locator("main img, main script").count(), 0, "what was written of it is text");
  assert.ok((await page.locator("main").innerText()).includes("<img src=x onerror=alert(1)>"), "and is shown as such");
  const one = page.url();

  await press("Suspend");
  await page.waitForURL(/to=suspended/, patience);
  await press("No, leave it");
  await page.waitForURL(one, patience);
  await state("active");
  await press("Suspend");
  await page.waitForURL(/to=suspended/, patience);
  await tabTo("why", "element.id === 'why'");
  await page.keyboard.type("from the page <b>");
  await press("Suspend");
  await page.waitForURL(one, patience);
  await state("suspended");
  console.log("suspended");
  await lines.next();
  await press("Reactivate");
  await page.waitForURL(/to=active/, patience);
  await press("Reactivate");
  await page.waitForURL(one, patience);
  await state("active");

  // Without scripts, in every look: the same pages, and nothing is wider than its window.
  const cookies = await context.cookies();
  for (const { name, width, height, colorScheme } of LOOKS) {
    const look = await browser.newContext({ viewport: { width, height }, colorScheme, javaScriptEnabled: false });
    await look.addCookies(cookies);
    const plain = await watched(look);
    for (const [what, url] of [
      ["agents", `${given.ui}/agents`],
      ["agent", one],
      ["suspend", `${one}/change?to=suspended`],
      ["decommission", `${one}/change?to=decommissioned`],
    ]) {
      await plain.goto(url);
      const wanted = await plain.locator("html").evaluate((html) => html.scrollWidth);
      assert.ok(wanted <= width, `${what} is ${wanted} px wide in ${name}`);
      if (given.shots) await plain.screenshot({ path: `${given.shots}/${what}-${name}.png`, fullPage: true });
    }
    // The box that says that there is no way back has to be ticked.
    await plain.getByRole("button", { name: "Decommission" }).click();
    assert.match(plain.url(), /to=decommissioned/, "it asks first");
    await look.close();
  }
  const look = await browser.newContext({ javaScriptEnabled: false });
  await look.addCookies(cookies);
  const plain = await watched(look);
  await plain.goto(`${one}/change?to=decommissioned`);
  await plain.getByRole("checkbox").check();
  await plain.getByRole("button", { name: "Decommission" }).click();
  await plain.waitForURL(one, patience);
  await plain.locator("#main .state.decommissioned").first().waitFor(patience);
  assert.equal(await plain.locator('a[href*="/change"]').count(), 0, "that is the end");
  assert.deepEqual(complaints, []);
  console.log("done");
} finally {
  await browser.close();
  process.stdin.destroy();
}
