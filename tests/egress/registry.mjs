// A registry of npm with as many packages as asked for, on loopback: node registry.mjs COUNT DIRECTORY
// Writes package.json and package-lock.json into DIRECTORY, and prints the port. Each answer takes 300 ms.
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { gzipSync } from 'node:zlib';

const [count, directory] = [Number(process.argv[2]), process.argv[3]];

// One file in a tar archive (ustar).
function tar(name, text) {
  const header = Buffer.alloc(512);
  header.write(name, 0);
  header.write('0000644\0', 100);
  header.write('0000000\0', 108);
  header.write('0000000\0', 116);
  header.write(text.length.toString(8).padStart(11, '0') + '\0', 124);
  header.write('00000000000\0', 136);
  header.write('        ', 148);
  header.write('0', 156);
  header.write('ustar\0', 257);
  header.write('00', 263);
  header.write(header.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0') + '\0 ', 148);
  const body = Buffer.alloc(Math.ceil(text.length / 512) * 512 + 1024);
  body.write(text);
  return Buffer.concat([header, body]);
}

const archives = new Map();
for (let i = 0; i < count; i++) {
  const name = `part-${i}`;
  archives.set(name, gzipSync(tar('package/package.json', JSON.stringify({ name, version: '1.0.0' }))));
}
const server = createServer((request, response) => {
  const archive = archives.get(request.url.split('/')[1]);
  setTimeout(() => response.writeHead(archive ? 200 : 404).end(archive), 300);
});
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const dependencies = Object.fromEntries([...archives.keys()].map((name) => [name, '1.0.0']));
  const root = { name: 'root', version: '1.0.0', dependencies };
  const packages = { '': root };
  for (const [name, archive] of archives) {
    const resolved = `http://registry.test:${port}/${name}/-/${name}-1.0.0.tgz`;
    const integrity = 'sha512-' + createHash('sha512').update(archive).digest('base64');
    packages[`node_modules/${name}`] = { version: '1.0.0', resolved, integrity };
  }
  writeFileSync(`${directory}/package.json`, JSON.stringify(root));
  writeFileSync(`${directory}/package-lock.json`, JSON.stringify({ ...root, lockfileVersion: 3, packages }));
  console.log(port);
});
