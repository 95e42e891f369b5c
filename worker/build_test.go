package worker

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// Real packages from the real index: a C extension with setuptools, and one with flit_core.
func TestBuildsRealPackages(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start(func(c *Config) { c.UpstreamIndex = "" })
	p.add(w, "markupsafe", "3.0.2")
	p.add(w, "itsdangerous", "2.2.0", func(j *api.Job) { j.Constraints = []string{"flit-core==3.12.0"} })
	for _, name := range []string{"markupsafe", "itsdangerous"} {
		r := p.ended(name, time.Minute)
		if r.Status != api.ResultStatusBuilt {
			t.Fatalf("%s: %s %s: %s\n%s", name, r.Status, r.Class, r.Reason, p.text(name))
		}
		data := p.wheels[r.Wheel.Filename]
		if int64(len(data)) != r.Wheel.Size || len(r.SdistSHA256) != 64 || r.DurationMS <= 0 {
			t.Errorf("%s: %+v, and the index has %d bytes", name, r, len(data))
		}
		if n := strings.Count(p.text(name), "\n"); n != r.LogLines {
			t.Errorf("%s: the log has %d lines, the result says %d", name, n, r.LogLines)
		}
		if !strings.Contains(p.text(name), "SHA-256 "+r.SdistSHA256) || !strings.Contains(p.text(name), "uv 0.") {
			t.Errorf("%s: the log does not say what was built with what:\n%s", name, p.text(name))
		}
	}
	markupsafe := p.ended("markupsafe", 0).Wheel.Filename
	if want := w.tags.PythonTag + "-" + w.tags.PythonTag + "-" + w.tags.PlatformTag + ".whl"; !strings.HasSuffix(markupsafe, want) {
		t.Errorf("%s is no wheel of a C extension", markupsafe)
	}
	z, err := zip.NewReader(bytes.NewReader(p.wheels[markupsafe]), int64(len(p.wheels[markupsafe])))
	if err != nil || !slices.ContainsFunc(z.File, func(f *zip.File) bool { return strings.HasSuffix(f.Name, ".so") }) {
		t.Errorf("%s has no extension: %v", markupsafe, err)
	}
	if !strings.Contains(p.text("itsdangerous"), "build requirements: flit-core==3.12.0\n") {
		t.Errorf("the pins were not used:\n%s", p.text("itsdangerous"))
	}
	want := []string{"result building markupsafe", "put " + markupsafe, "result built markupsafe"}
	calls := slices.DeleteFunc(slices.Clone(p.calls), func(c string) bool { return !slices.Contains(want, c) })
	if !slices.Equal(calls, want) {
		t.Errorf("calls: %v", calls)
	}
	lastLog := slices.IndexFunc(p.calls, func(c string) bool { return c == fmt.Sprintf("log markupsafe %d", p.chunks["markupsafe"]-1) })
	if lastLog < 0 || lastLog > slices.Index(p.calls, "result built markupsafe") {
		t.Errorf("the log was not there before the result: %v", p.calls)
	}
}

// hostile is a build that must not do harm. The worker that meets it has 5 or 30 s, 400 MiB, 100 processes, 60 MiB of disk and 1 MiB of log.
type hostile struct {
	name   string
	hangs  bool // and so it is met by a worker with less patience
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
		name: "forks", class: classOther, reason: "more processes than its limit",
		body: "while True:\n    if os.fork() == 0:\n        os.closerange(0, 100)\n        os.execvp('sleep', ['sleep', '987002'])",
		check: func(t *testing.T, p *plane, _ api.ResultReport) {
			if left := running("987002"); left != nil {
				t.Errorf("left: %d", len(left))
			}
		},
	},
	{
		name: "bomb", hangs: true, class: bombClass(), // every process forks for ever, from session to session
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
	for _, h := range hostiles {
		at(h).publish(h.name, "1.0", backend(h.name, "1.0", h.body))
		at(h).add(w, h.name, "1.0")
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
	for _, h := range hostiles {
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

// A build that nobody wants any more, or whose lease is over, ends within a second of the heartbeat that says so, and says nothing more.
func TestGivesUp(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	for name, how := range map[string]func(){
		"unwanted": func() { p.action["unwanted"] = api.JobActionCancel },
		"lost":     func() { p.action["lost"] = api.JobActionLost },
		"late":     func() { p.gone["late"] = true },
	} {
		p.publish(name, "1.0", backend(name, "1.0", "import subprocess\nwhile True:\n    print('tick', flush=True)\n    subprocess.run(['sleep', '0.2'])"))
		p.add(w, name, "1.0")
		p.eventually(20*time.Second, name+" builds", func() bool { return strings.Contains(p.logs[name], "tick") })
		p.mu.Lock()
		how()
		p.mu.Unlock()
		p.eventually(4*time.Second, name+" ends", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.jobs) == 0
		})
		for _, r := range p.results {
			t.Errorf("%s: a result was sent: %+v", name, r)
		}
	}
}

// A worker that stops hands back what it has, kills it, and leaves nothing behind.
func TestStopHandsBack(t *testing.T) {
	p := newPlane(t)
	w, stop := p.start()
	p.publish("endless", "1.0", backend("endless", "1.0", "print('tick', flush=True)\nos.execvp('sleep', ['sleep', '987005'])"))
	p.add(w, "endless", "1.0")
	slow := backend("slow", "1.0", "return wheel(folder)")
	slow["backend.py"] = strings.Replace(slow["backend.py"], "return []", "os.execvp('sleep', ['sleep', '987006'])", 1)
	p.publish("slow", "1.0", slow)
	p.push(api.Job{Kind: api.JobKindPlan, Attempt: 1, Requirements: "slow", Strategy: "pinned", BuildMode: "all"})
	p.eventually(20*time.Second, "it builds and plans", func() bool {
		return strings.Contains(p.logs["endless"], "tick") && running("987006") != nil
	})
	began := time.Now()
	stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if r := p.ended("endless", 0); r.Status != api.ResultStatusReleased || r.Reason == "" {
		t.Errorf("%+v", r)
	}
	if len(p.plans) != 1 || !p.plans[0].Released {
		t.Errorf("plans: %+v", p.plans)
	}
	if left := append(running("987005"), running("987006")...); left != nil {
		t.Errorf("left: %v", left)
	}
	if left, err := os.ReadDir(w.path("work")); err != nil || len(left) > 0 {
		t.Errorf("left in the work folder: %v %v", left, err)
	}
}

// A worker that is killed takes its builds with it, and the next start removes what it left.
func TestKilledWorker(t *testing.T) {
	p := newPlane(t)
	w, stop := p.start()
	stop()
	p.publish("orphan", "1.0", backend("orphan", "1.0", "os.setsid() if os.getpid() != os.getsid(0) else 0\nprint('tick', flush=True)\nos.execvp('sleep', ['sleep', '987007'])"))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "REFINERY_TEST_VICTIM="+p.url, "REFINERY_TEST_DIR="+shared)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.add(w, "orphan", "1.0")
	p.eventually(20*time.Second, "it builds", func() bool { return strings.Contains(p.logs["orphan"], "tick") && running("987007") != nil })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	p.eventually(2*time.Second, "the build ends", func() bool { return running("987007") == nil && running(supervisorName) == nil })
	if left, err := os.ReadDir(w.path("work")); err != nil || len(left) != 1 {
		t.Errorf("the work folder has %v %v", left, err)
	}
	if err := w.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(w.path("work")); err != nil || len(left) != 0 {
		t.Errorf("left in the work folder: %v %v", left, err)
	}
}

// A second start finds everything, and is quick.
func TestSecondStart(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	again, err := New(w.Config)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := again.Prepare(t.Context()); err != nil || again.Tags() != w.Tags() {
		t.Errorf("%v, %+v", err, again.Tags())
	}
	if took := time.Since(began); took > time.Second { // some 30 ms on a quiet machine
		t.Errorf("the second start took %s", took)
	}
}

// What is missing is said with what to do.
func TestPrepareSaysWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no such Python": {func(c *Config) { c.Python = "/nowhere/python3" }, "install python3 and python3-venv, or say which Python to use"},
		"not a Python":   {func(c *Config) { c.Python = "/bin/true" }, "its answer cannot be read"},
		"no such user":   {func(c *Config) { c.BuildUser = "no-such-user" }, "the build user"},
	} {
		cfg := Config{URL: "http://127.0.0.1:1", Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
		c.change(&cfg)
		w, err := New(cfg)
		if err == nil {
			err = w.Prepare(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A data folder that other users cannot reach is no obstacle: the worker's part goes where they can.
func TestFolderOutOfReach(t *testing.T) {
	if os.Getuid() != 0 {
		return // only root builds as other users
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.MkdirAll(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: closed + "/data", Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = errors.Join(w.identify(), w.settle())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(w.dir)
	if w.dir == closed+"/data" || unreachable(w.path("work")) != "" {
		t.Errorf("the folder is %s", w.dir)
	}
}

// While the control plane is away nothing is lost and nothing sent twice.
func TestOutlivesRestart(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	p.publish("steady", "1.0", backend("steady", "1.0", "for n in range(20):\n    print('line', n, flush=True)\n    time.sleep(0.1)\nreturn wheel(folder)"))
	var since time.Time
	p.mu.Lock()
	p.down = func(r *http.Request) bool { // away for 4 s, from the first line of the build on
		if since.IsZero() && strings.Contains(p.logs["steady"], "line 1\n") {
			since = time.Now()
		}
		return !since.IsZero() && time.Since(since) < 4*time.Second
	}
	p.mu.Unlock()
	p.add(w, "steady", "1.0")
	r := p.ended("steady", 30*time.Second)
	if r.Status != api.ResultStatusBuilt || len(p.results) != 1 || since.IsZero() {
		t.Errorf("%+v", p.results)
	}
	for n := range 20 {
		if c := strings.Count(p.text("steady"), fmt.Sprintf("line %d\n", n)); c != 1 {
			t.Errorf("line %d is there %d times", n, c)
		}
	}
}

// A wheel that another build brought into the index first stays, and is what the result names.
func TestKeepsTheFirstWheel(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	p.publish("second", "1.0", backend("second", "1.0", "return wheel(folder)"))
	sum := strings.Repeat("cd", 32)
	p.problems["second-1.0-py3-none-any.whl"] = `{"filename":"second-1.0-py3-none-any.whl","sha256":"` + sum + `"}`
	p.wheels["second-1.0-py3-none-any.whl"] = []byte("the first one")
	p.add(w, "second", "1.0")
	if r := p.ended("second", 20*time.Second); r.Status != api.ResultStatusBuilt || r.Wheel.SHA256 != sum || r.Wheel.Size != 13 {
		t.Errorf("%+v", r)
	}
}

func TestRecipes(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	recipe := func(kind api.RecipeKind, items ...string) func(*api.Job) {
		return func(j *api.Job) { j.Recipes = append(j.Recipes, api.Recipe{Kind: kind, Items: items}) }
	}
	body := "import helper\nprint('helper', helper.__file__)\nassert os.environ['CFLAGS'] == '-O1 -g'\nreturn wheel(folder)"
	p.publish("needy", "1.0", backend("needy", "1.0", body))
	p.put0("helper", "helper-1.0-py3-none-any.whl", pureWheel(t, "helper", "1.0"))
	p.put0("helper", "helper-2.0-py3-none-any.whl", pureWheel(t, "helper", "2.0"))
	p.add(w, "needy", "1.0", recipe("env", "CFLAGS=-O1 -g"), recipe("pip", "helper<2"), recipe("apt", "libpq-dev"))
	if r := p.ended("needy", 20*time.Second); r.Status != api.ResultStatusBuilt {
		t.Errorf("%+v\n%s", r, p.text("needy"))
	}
	for _, want := range []string{"needs apt packages libpq-dev, not installed", "build requirements: helper==1.0"} {
		if !strings.Contains(p.text("needy"), want) {
			t.Errorf("the log has no %q:\n%s", want, p.text("needy"))
		}
	}
	for i, bad := range []string{"PATH=/tmp", "LD_PRELOAD=x.so", "A B=c", "=x", "UV_CACHE_DIR=/"} {
		name := fmt.Sprintf("bad-%d", i)
		p.publish(name, "1.0", backend(name, "1.0", "return wheel(folder)"))
		p.add(w, name, "1.0", recipe("env", bad))
		if r := p.ended(name, 20*time.Second); r.Class != classOther || !strings.Contains(r.Reason, "is not allowed") {
			t.Errorf("%s: %+v", bad, r)
		}
	}
}

func pureWheel(t *testing.T, name, version string, requires ...string) []byte {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	info := name + "-" + version + ".dist-info/"
	metadata := fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\n", name, version)
	for _, r := range requires {
		metadata += "Requires-Dist: " + r + "\n"
	}
	for _, f := range [][2]string{
		{name + ".py", "version = '" + version + "'\n"},
		{info + "METADATA", metadata},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", ""},
	} {
		e, err := z.Create(f[0])
		if err == nil {
			_, err = e.Write([]byte(f[1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// As an ordinary user everything is the same but who builds. Where the tests run as root, they run again as nobody.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		return // the other tests have shown it
	}
	dir, err := os.MkdirTemp("", "worker-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// A copy of this program, and of the virtual environment where another test has made it.
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(dir+"/test", program, 0o755)
	}
	err = errors.Join(err, os.Mkdir(dir+"/shared", 0o755))
	if made, _ := filepath.Glob(shared + "/venv-*"); len(made) == 1 {
		err = errors.Join(err, exec.CommandContext(t.Context(), "cp", "-a", made[0], dir+"/shared/").Run())
	}
	for _, d := range []string{dir, dir + "/shared"} {
		err = errors.Join(err, os.Chmod(d, 0o755), os.Chown(d, 65534, 65534))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), dir+"/test", "-test.v", "-test.run=^(TestHostileBuilds|TestStopHandsBack|TestPlanBreaksCycles)$")
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PATH=") }),
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME="+dir, "TMPDIR="+dir, "REFINERY_TEST_SHARED="+dir+"/shared")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
