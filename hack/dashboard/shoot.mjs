// Takes a picture of the dashboard, as Grafana's own panels draw it, from a Prometheus that has data.
//
// usage: node shoot.mjs PROMETHEUS FROM TO PICTURE.png [CHROMIUM]     FROM and TO are Unix times in seconds
//
// It ends with an error if a panel has no data, or if a query fails.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { build } from 'vite';
import { chromium } from 'playwright-core';

const [prometheus, from, to, picture, executablePath = '/usr/bin/chromium'] = process.argv.slice(2);
const site = await mkdtemp(join(tmpdir(), 'dashboard-'));
const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css' };
let server, browser;
try {
  await build({
    root: import.meta.dirname, logLevel: 'error', esbuild: { jsx: 'automatic' },
    build: { outDir: site, emptyOutDir: true, target: 'esnext' } });
  server = createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    try {
      if (url.pathname.startsWith('/api/')) {
        const answer = await fetch(prometheus + request.url);
        const body = await answer.text();
        response.writeHead(answer.status, { 'content-type': 'application/json' }).end(body);
        return;
      }
      const file = url.pathname === '/' ? '/index.html' : url.pathname;
      const body = await readFile(join(site, file));
      response.writeHead(200, { 'content-type': types[extname(file)] ?? 'application/octet-stream' }).end(body);
    } catch (error) {
      response.writeHead(404).end(String(error));
    }
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'] });
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.stack));
  await page.goto(`http://127.0.0.1:${server.address().port}/?from=${from}&to=${to}`);
  await page.waitForSelector('#ready', { state: 'attached', timeout: 60000 }).catch((error) => errors.push(error.message));
  await page.waitForTimeout(1500);
  await page.screenshot({ path: picture, fullPage: true });
  const empty = await page.$$eval('[data-empty]', (found) => found.map((e) => e.dataset.empty));
  if (errors.length || empty.length) {
    throw new Error(['without data: ' + empty.join(', '), ...errors].join('\n'));
  }
} finally {
  await browser?.close();
  server?.close();
  await rm(site, { recursive: true, force: true });
}
