// Drives Debian's Chromium over /docs: log in, call, log out, then call with a pasted key. Prints what it saw as JSON.
// node docs_page.mjs ORIGIN EMAIL PASSWORD KEY

import { chromium } from "playwright-core";

const [origin, email, password, key] = process.argv.slice(2);
const ANSWER_MS = 10_000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], // as root, in a small container
});
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const page = await context.newPage();
page.setDefaultTimeout(ANSWER_MS);

const seen = { steps: {}, elsewhere: [], errors: [], csrf: {} };
page.on("request", (request) => {
  const url = request.url();
  if (!url.startsWith(`${origin}/`) && !url.startsWith("data:") && !url.startsWith("blob:")) seen.elsewhere.push(url);
});
page.on("pageerror", (error) => seen.errors.push(String(error)));
await page.addInitScript(() => {
  window.violations = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    window.violations.push(`${event.violatedDirective}: ${event.blockedURI || event.sample}`);
  });
});

async function call(name, operation, body) {
  const block = page.locator(`[id="operations-${operation}"]`);
  if ((await block.locator(".opblock-body").count()) === 0) {
    await block.locator(".opblock-summary-control").click();
    await block.locator(".try-out__btn").click();
  }
  if (body !== undefined) await block.locator("textarea.body-param__text").fill(JSON.stringify(body));
  const path = await block.locator(".opblock-summary-path").getAttribute("data-path");
  const [answer] = await Promise.all([
    page.waitForResponse((response) => new URL(response.url()).pathname === path),
    block.locator("button.execute").click(),
  ]);
  await block.locator(".live-responses-table .response-col_status", { hasText: String(answer.status()) }).waitFor();
  seen.steps[name] = answer.status();
  seen.csrf[name] = Boolean((await answer.request().allHeaders())["x-csrf-token"]);
}

await page.goto(`${origin}/docs`);
await page.locator('[id="operations-Sessions-login"]').waitFor();
seen.title = await page.title();
seen.operations = await page.locator(".opblock").count();

await call("a stranger asks", "Credits-get_credits");
await call("log in", "Sessions-login", { email, password });
seen.cookies = (await context.cookies()).map(({ name, httpOnly, sameSite }) => ({ name, httpOnly, sameSite }));
seen.readable = await page.evaluate(() => document.cookie.includes("inferbase_session"));
await call("call", "Credits-get_credits");
await call("change", "Keys-create_key", { name: "made on the page" });
await call("log out", "Sessions-logout", {});
await call("call again", "Credits-get_credits");

await page.locator("button.authorize").first().click();
const dialog = page.locator(".dialog-ux");
await dialog.locator('input[id="http-bearer-auth"], input[aria-label="auth-bearer-value"]').first().fill(key);
await dialog.locator("button.authorize").first().click();
await dialog.locator("button.btn-done").first().click();
await call("call with a key", "Credits-get_credits");
await call("ask", "Completions-create_chat_completion");

seen.violations = await page.evaluate(() => window.violations);
// The listener is of use only if the policy is in force.
await page.evaluate(() => document.body.append(Object.assign(document.createElement("script"), { text: "window.ran = 1" })));
seen.guarded = await page.evaluate(() => window.ran === undefined && window.violations.length > 0);

await browser.close();
console.log(JSON.stringify(seen));
