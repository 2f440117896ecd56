"""Ask a service whether what is installed has known weaknesses.

Ends with 1 where one is found, or where the audit itself breaks; an unreachable service is said, and ends with 0.
A service that answers "not found" to everything, as a mirror of packages does, knows nothing: that is said, too.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

IGNORED: dict[str, str] = {} # id of a weakness -> why it does not touch cdser
SERVICES = ('pypi', 'osv')   # asked in this order; the first that knows anything is believed
PATIENCE = 240               # seconds for one service
UNREACHABLE = re.compile(r'Connection|Timeout|timed out|NameResolution|HTTPError|ProxyError|SSLError|ServiceError|JSONDecodeError')
SKIPPED = 'audit skipped: no vulnerability service can be reached'


def ask(service: str) -> tuple[str, str]: # the report, what was complained of
    command = [Path(sys.executable).with_name('pip-audit'), '--local', '--skip-editable', '--format', 'json', '--desc', 'off',
               '--progress-spinner', 'off', '--timeout', '5', '--vulnerability-service', service]
    try: done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired: return '', f'Timeout after {PATIENCE} seconds'
    return done.stdout, done.stderr


def judge(report: str, complaint: str) -> tuple[int | None, list[str]]: # exit code, None where nothing was learned; lines
    "What one service said."
    try: packages = json.loads(report)['dependencies']
    except ValueError:
        if UNREACHABLE.search(complaint): return None, []
        return 1, ['audit: pip-audit broke:', *complaint.strip().splitlines()[-3:]]
    known = [package for package in packages if 'vulns' in package]
    if not known: return None, []
    found = [(package, weakness) for package in known for weakness in package['vulns'] if weakness['id'] not in IGNORED]
    lines = [f'audit: {package["name"]} {package["version"]}: {weakness["id"]}, mended in {", ".join(weakness["fix_versions"]) or "no version"}'
             for package, weakness in found]
    if unknown := [package['name'] for package in packages if 'vulns' not in package]:
        lines.append(f'audit: not known to the service: {", ".join(unknown)}')
    return int(bool(found)), [*lines, f'audit: {len(known)} packages, {len(found)} weaknesses']


def main() -> int:
    for service in SERVICES:
        code, lines = judge(*ask(service))
        if code is None: continue
        print('\n'.join(lines))
        return code
    print(SKIPPED)
    return 0


if __name__ == '__main__': sys.exit(main())
