package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/pause"
)

// Config says how to work. Only URL, Dir and Logger must be given.
type Config struct {
	URL           string        // of the control plane
	Token         string        // sent to it as X-Worker-Token; no build sees it
	ID            string        // default: the host's name and something random, kept in Dir
	Dir           string        // for the virtual environment, caches and work folders
	Slots         int           // jobs at once; default: the number of CPUs
	Python        string        // the interpreter that builds; default: python3, python3.14 … python3.9 of PATH, /usr/bin/python3*
	BuildUser     string        // the user that builds, with root; default: one of its own for each build. "root" builds as root
	Timeout       time.Duration // of one build; default 1 h
	Memory        int64         // bytes, of one build; default 4 GiB
	Processes     int           // and threads, of one build; default 512
	Disk          int64         // bytes, of one build; default 10 GiB
	Log           int64         // bytes kept of one build's log; default 16 MiB
	UpstreamIndex string        // default: what uv or pip are configured to use
	Packages      bool          // recipes may install packages of the distribution; needs root
	Logger        *slog.Logger
}

// Worker leases jobs and does them.
type Worker struct {
	Config
	client    *api.ClientWithResponses
	transport *http.Transport
	self      string // this program
	host      string
	version   string
	network   map[string]string

	pool          bool     // each box has a user of its own
	builder       identity // where it has not
	dir           string
	venv, program string // folders in dir
	tags          Tags

	installing  sync.Mutex // packages of the distribution, one build's at a time
	upstreamMu  sync.Mutex
	upstreamURL string

	mu       sync.Mutex
	jobs     map[api.JobRef]context.CancelCauseFunc
	draining bool
	round    context.Context    // of asking for jobs; ends when somebody says that there are some
	endRound context.CancelFunc //
	book     *book              // of the jobs that are being done
}

// Why a job's context ends.
var (
	errCancelled = errors.New("nobody wants it any more")
	errLost      = errors.New("the lease is over")
	errStopping  = errors.New("the worker stops")
)

var workerID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// New checks the configuration and fills in the defaults. It starts nothing.
func New(c Config) (*Worker, error) {
	if c.Dir == "" || c.Logger == nil {
		return nil, errors.New("a worker needs a folder and a logger")
	}
	if c.Slots < 0 || c.Timeout < 0 || c.Memory < 0 || c.Processes < 0 || c.Disk < 0 || c.Log < 0 {
		return nil, errors.New("a worker's slots and limits cannot be negative")
	}
	if c.ID != "" && !workerID.MatchString(c.ID) {
		return nil, errors.New("a worker's name has up to 128 letters, digits, dots, dashes and underscores")
	}
	c.Slots = or(c.Slots, runtime.NumCPU())
	c.Timeout = or(c.Timeout, time.Hour)
	c.Memory = or(c.Memory, 4<<30)
	c.Processes = or(c.Processes, 512)
	c.Disk = or(c.Disk, 10<<30)
	c.Log = or(c.Log, 16<<20)
	w := &Worker{Config: c, network: network(), jobs: map[api.JobRef]context.CancelCauseFunc{}}
	var err error
	if w.self, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if w.host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("find this host's name: %w", err)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		w.version = info.Main.Version
	}
	w.transport = http.DefaultTransport.(*http.Transport).Clone()
	w.transport.ResponseHeaderTimeout = time.Minute
	w.transport.MaxIdleConnsPerHost = c.Slots + 2
	w.client, err = api.NewClientWithResponses(c.URL, api.WithHTTPClient(&http.Client{Transport: w.transport}),
		api.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			if c.Token != "" {
				r.Header.Set("X-Worker-Token", c.Token)
			}
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("the control plane's address: %w", err)
	}
	return w, nil
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// Run does jobs until ctx ends. Then it kills what builds, hands it back, and returns within 8 s. It prepares the worker if Prepare was not
// called.
func (w *Worker) Run(ctx context.Context) error {
	defer w.transport.CloseIdleConnections()
	if w.tags.Interpreter == "" {
		if err := w.Prepare(ctx); err != nil {
			return err
		}
	}
	if err := w.name(); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		// Builds run as the same user, who could read the token from this process otherwise.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return fmt.Errorf("hide the worker's memory from builds: %w", err)
		}
	}
	w.Logger.Info("the worker is ready", "worker", w.ID, "slots", w.Slots, "python", w.tags.Interpreter, "version", w.tags.PythonVersion,
		"tags", w.tags.PythonTag+" "+w.tags.PlatformTag, "folder", w.dir)
	leases := w.path("leases")
	var err error
	if w.book, err = openBook(leases); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.handBack(ctx, leases); err != nil && ctx.Err() == nil {
			w.Logger.Warn("what an earlier process held is not handed back; its leases run out", "error", err)
		}
	})
	for range w.Slots {
		wg.Go(func() { w.slot(ctx) })
	}
	beating, stop := context.WithCancel(context.WithoutCancel(ctx)) // leases last until they are handed back
	var beat sync.WaitGroup
	beat.Go(func() { w.heartbeats(beating) })
	wg.Wait()
	stop()
	beat.Wait()
	return w.book.close()
}

// name keeps the worker's name from start to start.
func (w *Worker) name() error {
	if w.ID != "" {
		return nil
	}
	data, err := os.ReadFile(w.path("id"))
	if errors.Is(err, fs.ErrNotExist) {
		host := strings.Trim(regexp.MustCompile(`[^A-Za-z0-9.-]+`).ReplaceAllString(w.host, "-"), "-.")
		data = []byte(or(host[:min(len(host), 64)], "worker") + "-" + strings.ToLower(rand.Text()[:6]))
		err = os.WriteFile(w.path("id"), data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("the worker's name: %w", err)
	}
	if w.ID = strings.TrimSpace(string(data)); !workerID.MatchString(w.ID) {
		return fmt.Errorf("%s does not hold a worker's name: remove it", w.path("id"))
	}
	return nil
}

// slot does one job after the other.
func (w *Worker) slot(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		if w.isDraining() {
			pause.For(ctx, time.Second)
			continue
		}
		job, err := w.lease(ctx)
		switch {
		case ctx.Err() != nil && job == nil:
			return
		case err != nil:
			failures++
			if failures == 1 || failures%20 == 0 {
				w.Logger.Warn("no job can be leased: trying again", "error", err)
			}
			pause.For(w.asking(ctx), min(5*time.Second, 200*time.Millisecond*time.Duration(math.Pow(2, float64(min(failures, 10))))))
			continue
		}
		if failures > 0 {
			w.Logger.Info("jobs can be leased again")
			failures = 0
		}
		if job != nil {
			w.do(ctx, job)
		}
	}
}

// do does one job under its lease.
func (w *Worker) do(ctx context.Context, job *api.Job) {
	if job.Kind == api.JobKindSmoke { // has no heartbeats: nobody waits for long
		w.smoke(ctx, job.SmokeID)
		return
	}
	ref := api.JobRef{Kind: job.Kind, Attempt: job.Attempt}
	if job.Kind == api.JobKindPlan {
		ref.RunID = job.RunID
	} else {
		ref.Build = job.Build
	}
	if strike, err := w.book.note(ref); err != nil {
		w.Logger.Warn("a job is not written down; if this process is killed, its lease must run out", "error", err)
	} else {
		defer func() {
			if err := strike(); err != nil {
				w.Logger.Warn("a finished job is still written down", "error", err)
			}
		}()
	}
	// The end of ctx reaches the job as a cause of its own, so that it is told from a timeout.
	jobCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(errStopping) })()
	w.mu.Lock()
	w.jobs[ref] = cancel
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.jobs, ref)
		w.mu.Unlock()
	}()
	if job.Kind == api.JobKindPlan {
		w.plan(jobCtx, job)
	} else {
		w.build(jobCtx, job)
	}
}

func (w *Worker) isDraining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draining
}

// heartbeats extends the leases and does what the answer says.
func (w *Worker) heartbeats(ctx context.Context) {
	interval := 10 * time.Second // until an answer says otherwise
	for ; ctx.Err() == nil; pause.For(ctx, interval) {
		w.mu.Lock()
		jobs := make([]api.JobRef, 0, len(w.jobs))
		for ref := range w.jobs {
			jobs = append(jobs, ref)
		}
		w.mu.Unlock()
		answer, err := w.heartbeat(ctx, jobs)
		if err != nil {
			if ctx.Err() == nil {
				w.Logger.Warn("a heartbeat failed", "error", err)
				interval = 2 * time.Second
			}
			continue
		}
		interval = time.Duration(min(max(answer.IntervalSeconds, 1), 30)) * time.Second
		w.mu.Lock()
		if drain := answer.Action == api.WorkerActionDrain; drain != w.draining {
			w.draining = drain
			w.Logger.Info("the control plane asked", "action", answer.Action)
		}
		for _, j := range answer.Jobs {
			cancel := w.jobs[api.JobRef{Kind: j.Kind, Build: j.Build, RunID: j.RunID, Attempt: j.Attempt}]
			switch {
			case cancel == nil:
			case j.Action == api.JobActionCancel:
				cancel(errCancelled)
			case j.Action == api.JobActionLost:
				cancel(errLost)
			}
		}
		w.mu.Unlock()
	}
}
