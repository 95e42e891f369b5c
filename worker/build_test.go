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
	p.start() // which hands back what the killed one held, and not in another test
	if r := p.ended("orphan", 10*time.Second); r.Status != api.ResultStatusReleased {
		t.Errorf("%+v", r)
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
	results := slices.DeleteFunc(slices.Clone(p.results), func(r api.ResultReport) bool { return r.Build.Name != "steady" }) // others' jobs are handed back here
	if r.Status != api.ResultStatusBuilt || len(results) != 1 || since.IsZero() {
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
	p.add(w, "needy", "1.0", recipe("env", "CFLAGS=-O1 -g"), recipe("pip", "helper<2"), recipe("version", "needy>=2"))
	if r := p.ended("needy", 20*time.Second); r.Status != api.ResultStatusBuilt {
		t.Errorf("%+v\n%s", r, p.text("needy"))
	}
	if want := "build requirements: helper==1.0"; !strings.Contains(p.text("needy"), want) {
		t.Errorf("the log has no %q:\n%s", want, p.text("needy"))
	}
	// Constraints are for whatever needs it; the backend's hook sees the variables as well.
	limited := backend("limited", "1.0", "import helper\nreturn wheel(folder)")
	limited["backend.py"] = strings.Replace(limited["backend.py"], "return []", "return ['helper'] if os.environ['WITH'] == 'helper' else []", 1)
	p.publish("limited", "1.0", limited)
	p.add(w, "limited", "1.0", recipe("env", "WITH=helper"), recipe("constraint", "helper<2", "unused<1"), func(j *api.Job) { j.Constraints = []string{"helper==2.0"} })
	if r := p.ended("limited", 20*time.Second); r.Status != api.ResultStatusBuilt || !strings.Contains(p.text("limited"), "build requirements: helper==1.0") {
		t.Errorf("%+v\n%s", r, p.text("limited"))
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
