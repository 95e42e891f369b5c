package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
)

// maxWheel is the largest wheel that the control plane takes.
const maxWheel = 1 << 30

// prepared is the planner's answer: what a build is made from.
type prepared struct {
	Sdist struct {
		Filename string `json:"filename"`
		SHA256   string `json:"sha256"`
	} `json:"sdist"`
	Path string   `json:"path"` // of the sdist
	Env  string   `json:"env"`  // the environment with the build requirements
	Pins []string `json:"pins"`
}

// build builds one wheel and reports how it went: first that it builds, then the log, then the wheel, then the result.
func (w *Worker) build(ctx context.Context, job *api.Job) {
	log := w.Logger.With("build", job.Build.Name+" "+job.Build.Version, "attempt", job.Attempt)
	log.Info("building")
	began := time.Now()
	stream := &logStream{limit: w.Log, post: func(ctx context.Context, chunk int, text string) error {
		return w.postLog(ctx, job, chunk, text)
	}}
	report := api.ResultReport{Worker: w.ID, Build: job.Build, Attempt: job.Attempt, StartedAt: began.UTC()}
	wheel, err := w.makeWheel(ctx, job, stream, &report)
	if cause := context.Cause(ctx); cause == errCancelled || cause == errLost || isLost(err) {
		log.Info("the build was given up", "reason", or(cause, errLost))
		return
	} else if cause != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		err = cause
	}
	f, isFault := errors.AsType[*fault](err)
	switch {
	case err == nil:
		report.Status, report.Wheel = api.ResultStatusBuilt, wheel
	case errors.Is(err, errStopping):
		report.Status, report.Reason = api.ResultStatusReleased, errStopping.Error()
	case isFault && f.Class == unavailable:
		report.Status, report.Reason = api.ResultStatusReleased, oneLine(f.Reason)
	case isFault:
		report.Status, report.Class, report.Reason, report.Evidence = api.ResultStatusFailed, f.Class, oneLine(f.Reason), evidence(f.Evidence)
		if len(f.Backend) <= 300 && backendForm.MatchString(f.Backend) {
			report.BuildBackend = f.Backend
		}
	default:
		report.Status, report.Class = api.ResultStatusFailed, classOther
		report.Reason = oneLine("the worker could not build: " + err.Error())
	}
	if report.Status != api.ResultStatusBuilt {
		stream.say(ctx, "%s: %s", report.Status, report.Reason)
	}
	if err := stream.finish(ctx); isLost(err) {
		log.Info("the result comes too late: the lease was over")
		return
	} else if err != nil {
		log.Warn("the end of the log could not be sent", "error", err)
	}
	report.DurationMS, report.LogLines = time.Since(began).Milliseconds(), stream.count()
	switch err := w.result(ctx, report); {
	case isLost(err):
		log.Info("the result comes too late: the lease was over")
	case err != nil:
		log.Error("the result could not be reported", "error", err)
	default:
		log.Info("done", "status", report.Status, "class", report.Class, "reason", report.Reason, "wheel", report.Wheel.Filename,
			"seconds", time.Since(began).Round(100*time.Millisecond).Seconds())
	}
}

// makeWheel does what makes a wheel. When it returns without an error, the wheel is in the index.
func (w *Worker) makeWheel(ctx context.Context, job *api.Job, log *logStream, report *api.ResultReport) (api.WheelRef, error) {
	s, err := w.newScene(debugLog{w.Logger})
	if err != nil {
		return api.WheelRef{}, err
	}
	defer s.close()
	b := job.Build
	log.say(ctx, "building %s %s for %s %s, attempt %d, on worker %s", b.Name, b.Version, b.PythonTag, b.PlatformTag, job.Attempt, w.ID)
	add, err := w.apply(ctx, job, log)
	if err != nil {
		return api.WheelRef{}, err
	}
	env := add.env
	ask := map[string]any{
		"do": "prepare", "name": b.Name, "version": b.Version, "constraints": job.Constraints, "extra": add.requirements, "limits": add.limits,
		"env": env, "index_url": job.IndexURL,
	}
	if job.Sdist.SHA256 != "" {
		ask["sdist"] = job.Sdist
	}
	var p prepared
	if err := s.ask(ctx, w.Timeout, ask, &p); err != nil {
		// A backend's hook may be what fails. What it printed is in no log yet.
		if f, ok := errors.AsType[*fault](err); ok {
			log.write(ctx, []byte(strings.Join(append(f.Evidence, ""), "\n")))
			if f.Class == classBackend {
				f.explain(f.Evidence)
			}
		}
		return api.WheelRef{}, err
	}
	report.SdistSHA256 = p.Sdist.SHA256
	log.say(ctx, "Python %s (%s), %s", w.tags.PythonVersion, w.tags.Interpreter, strings.Replace(requirements[0], "==", " ", 1))
	log.say(ctx, "source %s, SHA-256 %s", p.Sdist.Filename, p.Sdist.SHA256)
	log.say(ctx, "build requirements: %s", or(strings.Join(p.Pins, " "), "none"))
	if err := w.result(ctx, api.ResultReport{
		Worker: w.ID, Build: b, Attempt: job.Attempt, Status: api.ResultStatusBuilding, StartedAt: report.StartedAt,
	}); err != nil {
		return api.WheelRef{}, err
	}

	box, err := s.box("build")
	if err != nil {
		return api.WheelRef{}, err
	}
	err = w.runBackend(ctx, box, log, p, env)
	var wheel api.WheelRef
	if err == nil {
		wheel, err = w.publish(ctx, job, s, box, log)
	}
	if f, ok := errors.AsType[*fault](err); ok && f.Class != unavailable {
		f.Backend = w.backendOf(ctx, s, p.Path)
	}
	return wheel, err
}

// backendForm is what the control plane takes as the name of a build backend.
var backendForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?$`)

// backendOf is the build backend that an sdist names, or "" where it cannot be told.
func (w *Worker) backendOf(ctx context.Context, s *scene, sdist string) string {
	var system struct{ Backend string }
	r := s.serve(ctx, request{Box: "backend", File: "system.json", TimeoutMS: time.Minute.Milliseconds(), Argv: []string{
		w.path(w.venv, "bin", "python"), "-I", w.path(w.program, "hooks.py"), "unpack", "{box}/system.json", sdist, "{box}/source",
	}})
	if err := json.Unmarshal([]byte(r.Result), &system); err != nil {
		w.Logger.Warn("the build backend of a failed build is not known", "sdist", filepath.Base(sdist), "error", err, "output", r.Output)
	}
	return system.Backend
}

// runBackend has uv build the wheel.
func (w *Worker) runBackend(ctx context.Context, box *box, log *logStream, p prepared, env map[string]string) error {
	// What it needs is in the environment, which puts its tools first. uv has no cache and no index here.
	env["PATH"] = p.Env + "/bin:/usr/local/bin:/usr/bin:/bin"
	env["VIRTUAL_ENV"] = p.Env
	env["UV_NO_PROGRESS"] = "1"
	return w.runLogged(ctx, box, log, command{timeout: w.Timeout, env: env, argv: []string{
		w.path(w.venv, "bin", "uv"), "build", "--wheel", "--no-build-isolation", "--offline", "--no-cache", "--no-config",
		"--no-python-downloads", "--color", "never", "--python", p.Env + "/bin/python", "--out-dir", "{box}/out", p.Path,
	}})
}

// checkedWheel is what a build left, or what is wrong with it.
type checkedWheel struct{ Filename, Problem string }

// checkWheel looks at what a build left in the box "build", which is quiet now.
func (w *Worker) checkWheel(ctx context.Context, s *scene, project, version string) (checked checkedWheel, err error) {
	// A name that the build could not foresee keeps the answer ours.
	name := uuid.NewString() + ".json"
	r := s.serve(ctx, request{Box: "build", File: name, TimeoutMS: time.Minute.Milliseconds(), Argv: []string{
		w.path(w.venv, "bin", "python"), "-I", w.path(w.program, "hooks.py"), "check", "{box}/" + name, "{box}/out", project, version,
	}})
	if err := json.Unmarshal([]byte(r.Result), &checked); err != nil {
		if context.Cause(ctx) != nil {
			return checked, context.Cause(ctx)
		}
		return checked, fmt.Errorf("check the wheel: %w: %s", err, r.Output)
	}
	return checked, nil
}

// runLogged runs the build itself.
func (w *Worker) runLogged(ctx context.Context, b *box, log *logStream, c command) error {
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the build: %w", err)
	}
	defer out.Close()
	// A log that the control plane refuses ends the build: the lease is over.
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var logged error
	var wg sync.WaitGroup
	wg.Go(func() {
		logged = log.copy(running, out, func(err error) { cancel(err) })
	})
	c.stdout, c.stderr = in, in
	done, err := b.run(running, c)
	in.Close()
	wg.Wait()
	switch {
	case logged != nil:
		return logged
	case err != nil:
		return err
	case done.Verdict != "":
		return &fault{
			Class: verdictClass(done.Verdict), Reason: "the build was stopped: " + w.verdictReason(done.Verdict, c.timeout),
			Evidence: evidence(log.tail(evidenceLines)),
		}
	case done.Code != 0:
		return classify(log.tail(400), done.Code)
	}
	return nil
}

// publish checks the wheel and brings it into the index.
func (w *Worker) publish(ctx context.Context, job *api.Job, s *scene, b *box, log *logStream) (api.WheelRef, error) {
	checked, err := w.checkWheel(ctx, s, job.Build.Name, job.Build.Version)
	if err != nil {
		return api.WheelRef{}, err
	}
	if checked.Problem != "" {
		return api.WheelRef{}, &fault{Class: classBackend, Reason: checked.Problem, Evidence: evidence(log.tail(evidenceLines))}
	}
	f, size, err := b.open(filepath.Join("out", checked.Filename), maxWheel)
	if err != nil {
		return api.WheelRef{}, &fault{Class: classBackend, Reason: "the wheel cannot be read: " + err.Error()}
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return api.WheelRef{}, fmt.Errorf("read the wheel: %w", err)
	}
	wheel := api.WheelRef{Filename: checked.Filename, SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size}
	stored, err := w.upload(ctx, job, f, wheel)
	if r, ok := errors.AsType[*refused](err); ok && !isLost(err) {
		return api.WheelRef{}, &fault{Class: classBackend, Reason: "the control plane refused " + wheel.Filename + ": " + r.detail}
	}
	if err != nil {
		return api.WheelRef{}, err
	}
	if stored.SHA256 == wheel.SHA256 {
		log.say(ctx, "built %s, %d bytes, SHA-256 %s", stored.Filename, stored.Size, stored.SHA256)
	} else {
		log.say(ctx, "the index has %s from another build already, SHA-256 %s: that one stays", stored.Filename, stored.SHA256)
	}
	return stored, nil
}

// debugLog passes what the planner says on to the worker's own log.
type debugLog struct{ *slog.Logger }

func (l debugLog) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if line = strings.TrimSpace(line); line != "" {
			l.Debug("planner", "says", line)
		}
	}
	return len(p), nil
}

// idempotencyKey makes a repeated report the same command.
func idempotencyKey(s string) *api.IdempotencyKey {
	key := uuid.NewSHA1(uuid.NameSpaceOID, []byte("wheelrefinery/worker/"+s)).String()
	return &key
}
