package worker

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// hostile is a build that must not do harm. The worker that meets it has 5 or 30 s, 400 MiB, 100 processes, 60 MiB of disk and 1 MiB of log.
type hostile struct {
	name   string
	hangs  bool // and so it is met by a worker with less patience
	alone  bool // takes all processes of its user, which an ordinary user's builds share: it runs when the others have ended
	body   string
	class  api.Class // empty: it is built
	reason string    // part of it
	check  func(t *testing.T, p *plane, r api.ResultReport)
}

var hostiles = []hostile{
	{
		name: "hangs", hangs: true, class: classTimeout, reason: "did not end within 5s",
		body: "import subprocess\nsubprocess.Popen(['sleep', '987001'])\nprint('almost there')\ntime.sleep(10**6)",
		check: func(t *testing.T, p *plane, r api.ResultReport) {
			if left := running("987001"); left != nil {
				t.Errorf("left: %v", left)
			}
			if !slices.Contains(r.Evidence, "almost there") {
				t.Errorf("evidence: %q", r.Evidence)
			}
		},
	},
	{
		name: "forks", alone: true, class: classOther, reason: "more processes than its limit",
		body: "while True:\n    if os.fork() == 0:\n        os.closerange(0, 100)\n        os.execvp('sleep', ['sleep', '987002'])",
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if left := running("987002"); left != nil {
				t.Errorf("left: %d", len(left))
			}
		},
	},
	{
		name: "bomb", hangs: true, alone: true, class: bombClass(), // every process forks for ever, from session to session
		body: "while True:\n    try:\n        if os.fork() == 0:\n            os.setsid()\n    except OSError:\n        time.sleep(0.01)",
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if left := running("bomb-1.0"); left != nil {
				t.Errorf("left: %v", left)
			}
		},
	},
	{
		name: "daemon", // leaves a process behind that has its own session, no parent, no variables and no open files
		body: `
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        os.chdir('/')
        os.execve('/bin/sleep', ['sleep', '987004'], {})
    os._exit(0)
os.wait()
return wheel(folder)`,
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if left := running("987004"); left != nil {
				t.Errorf("left: %v", left)
			}
		},
	},
	{
		name: "chatty", // 200 MB of log
		body: "line = 'x' * 999 + '\\n'\nprint('the first line')\nfor _ in range(200_000): sys.stdout.write(line)\nprint('the last line')\nreturn wheel(folder)",
		check: func(t *testing.T, p *plane, r api.ResultReport) {
			log := p.text("chatty")
			if len(log) < 1<<20 || len(log) > 2<<20 {
				t.Errorf("%d bytes of log", len(log))
			}
			for _, want := range []string{"the first line\n", "the last line\n", "bytes of the log are left out here"} {
				if !strings.Contains(log, want) {
					t.Errorf("the log has no %q", want)
				}
			}
			if n := strings.Count(log, "\n"); n != r.LogLines {
				t.Errorf("%d lines, the result says %d", n, r.LogLines)
			}
		},
	},
	{
		name: "silent-line", // 20 MB without a line break, and text that is none
		body: "out = sys.stdout.buffer\nout.write(b'\\xff\\x00abc' + '\u20ac'.encode()[:2] + b'\\n')\nout.write('\u20ac'.encode() * 7_000_000)\nout.flush()\nreturn wheel(folder)",
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			log := p.text("silent-line")
			if !strings.Contains(log, "\uFFFDabc\uFFFD\n") {
				t.Errorf("bytes that are no text: %.900q", log)
			}
			if _, after, _ := strings.Cut(log, "abc\uFFFD\n"); strings.ContainsRune(after, '\uFFFD') {
				t.Error("a character was broken")
			}
		},
	},
	{name: "no-wheel", class: classBackend, reason: "", body: "return 'no_wheel-1.0-py3-none-any.whl'"},
	{name: "two-wheels", class: classBackend, reason: "2 wheels", body: "wheel(folder, version='2.0')\nreturn wheel(folder)"},
	{name: "liar", class: classBackend, reason: "disagrees with its metadata", body: "return wheel(folder, said='flask')"},
	{name: "other", class: classBackend, reason: "the wheel declares name flask", body: "return wheel(folder, name='flask')"},
	{
		name: "thief", class: classBackend, reason: "", // a link to what only the worker may read
		body: "os.symlink('/etc/shadow', os.path.join(folder, 'thief-1.0-py3-none-any.whl'))\nreturn 'thief-1.0-py3-none-any.whl'",
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if len(p.wheels["thief-1.0-py3-none-any.whl"]) > 0 {
				t.Error("the index has it")
			}
		},
	},
	{name: "glutton", class: classOutOfMemory, reason: "memory", body: "a = bytearray(10**9)\nreturn wheel(folder)"},
	{
		name: "gluttons", class: classOutOfMemory, reason: "400 MiB", // each of them within the limit
		body: "for _ in range(8):\n    if os.fork() == 0:\n        a = b'x' * (100 << 20)\n        time.sleep(100)\ntime.sleep(100)",
	},
	{name: "hoarder", class: classOther, reason: "60 MiB to disk", body: "for n in range(100):\n    open(str(n), 'wb').write(b'x' * (1 << 20))\ntime.sleep(100)"},
	{name: "big-file", class: classOther, reason: "disk", body: "open('x', 'wb').write(b'x' * (100 << 20))\nreturn wheel(folder)"},
	{
		name: "spy", // of the worker's secrets and the folders of others
		body: `
seen = dict(os.environ)
for pid in os.listdir('/proc'):
    try:
        seen[pid] = open('/proc/%s/environ' % pid).read()
    except (OSError, ValueError):
        pass
def ls(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
print('seen', seen)
print('groups', os.getgroups(), 'cwd', os.getcwd(), 'uid', os.getuid())
print('root', ls('/root'))
me = os.environ['HOME'].split('/work/')[1]
others = os.environ['HOME'].split('/work/')[0] + '/work'
for d in ls(others):
    for e in ls(others + '/' + d):
        if d + '/' + e not in me and e.startswith('box-'):
            print('other box', ls(others + '/' + d + '/' + e))
for path in ls('/proc/self/fd'):
    print('fd', path, os.readlink('/proc/self/fd/' + path) if os.path.exists('/proc/self/fd/' + path) else '')
return wheel(folder)`,
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			log := p.text("spy")
			if strings.Contains(log, testToken) {
				t.Error("the build saw the token")
			}
			if os.Getuid() == 0 && (!strings.Contains(log, "root []") || !strings.Contains(log, "groups []") || strings.Contains(log, "uid 0")) {
				t.Errorf("the build runs as root or in its groups:\n%s", log)
			}
			if strings.Contains(log, "socket:") {
				t.Errorf("the build has descriptors of the worker:\n%s", log)
			}
		},
	},
	{
		name: "poisoner", class: "", // tries to change what other builds use
		body: `
for path in (os.environ['VIRTUAL_ENV'] + '/lib', sys.prefix + '/bin/x', os.environ['HOME'].split('/work/')[0] + '/cache/uv/x'):
    try:
        os.makedirs(path + '/poison')
        print('poisoned', path)
    except OSError:
        pass
return wheel(folder)`,
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if os.Getuid() == 0 && strings.Contains(p.text("poisoner"), "poisoned") {
				t.Errorf("it could write:\n%s", p.text("poisoner"))
			}
		},
	},
}

// bombClass: as a user of its own a bomb stays within its limit, and lasts. An ordinary user's is ended by who counts.
func bombClass() api.Class {
	if os.Getuid() == 0 {
		return classTimeout
	}
	return classOther
}

func small(c *Config) {
	c.Timeout, c.Memory, c.Processes, c.Disk, c.Log = 30*time.Second, 400<<20, 100, 60<<20, 1<<20
}

func TestHostileBuilds(t *testing.T) {
	p := newPlane(t)
	w, stop := p.start(small)
	impatient := newPlane(t)
	w2, stop2 := impatient.start(small, func(c *Config) { c.Timeout, c.Slots = 5*time.Second, 1 })
	at := func(h hostile) *plane {
		if h.hangs {
			return impatient
		}
		return p
	}
	add := func(h hostile) {
		at(h).publish(h.name, "1.0", backend(h.name, "1.0", h.body))
		at(h).add(w, h.name, "1.0")
	}
	last := slices.SortedStableFunc(slices.Values(hostiles), func(a, b hostile) int {
		if a.alone == b.alone {
			return 0
		} else if b.alone {
			return -1
		}
		return 1
	})
	for _, h := range last {
		if !h.alone {
			add(h)
		}
	}
	sum := p.publish("forged", "1.0", backend("forged", "1.0", "return wheel(folder)"))
	wrong := strings.Repeat("ab", 32)
	p.add(w, "forged", "1.0", func(j *api.Job) {
		j.Sdist = api.File{Filename: "forged-1.0.tar.gz", URL: p.url + "/files/forged/forged-1.0.tar.gz", SHA256: wrong}
	})
	r := p.ended("forged", 2*time.Minute)
	if r.Class != classDownload || !strings.Contains(r.Reason, sum) || !strings.Contains(r.Reason, wrong) {
		t.Errorf("forged: %s %s", r.Class, r.Reason)
	}
	hook := backend("hook", "1.0", "return wheel(folder)")
	hook["backend.py"] += "\ndef get_requires_for_build_wheel(settings=None):\n    raise RuntimeError('no pg_config')\n"
	p.publish("hook", "1.0", hook)
	p.add(w, "hook", "1.0")
	r = p.ended("hook", 2*time.Minute)
	if r.Class != classBackend || !strings.Contains(r.Reason, "no pg_config") || r.BuildBackend != "backend" {
		t.Errorf("hook: %s %s, of %q", r.Class, r.Reason, r.BuildBackend)
	}
	for _, h := range last {
		if h.alone {
			add(h)
		}
		t.Run(h.name, func(t *testing.T) {
			p := at(h)
			r := p.ended(h.name, 2*time.Minute)
			want := api.ResultStatusBuilt
			if h.class != "" {
				want = api.ResultStatusFailed
			}
			if r.Status != want || r.Class != h.class || !strings.Contains(r.Reason, h.reason) || len(r.Evidence) > evidenceLines {
				log := p.text(h.name)
				t.Errorf("%s %s: %s (%d ms)\n%s", r.Status, r.Class, r.Reason, r.DurationMS, log[max(0, len(log)-2000):])
			}
			if want == api.ResultStatusFailed && r.BuildBackend != "backend" {
				t.Errorf("its build backend is said to be %q", r.BuildBackend)
			}
			if h.check != nil {
				h.check(t, p, r)
			}
		})
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	if memory.Sys > 200<<20 {
		t.Errorf("the worker took %d MiB", memory.Sys>>20)
	}
	stop()
	stop2()
	if left, err := os.ReadDir(w2.path("work")); err != nil || len(left) > 0 {
		t.Errorf("left in the work folder: %v %v", left, err)
	}
}
