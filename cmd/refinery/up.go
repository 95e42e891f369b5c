package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/migrations"
	"github.com/wheelrefinery/refinery/worker"
)

// upCmd runs everything in one process.
type upCmd struct {
	controlSettings
	workerSettings
	request
	Once bool `help:"Stop when the run of -r has ended; the exit code says how."`
}

// Run starts everything, refines a requirements file when one is given, and serves until Ctrl-C.
func (u *upCmd) Run(ctx context.Context, t *terminal) error {
	if u.Once && u.Requirements == "" {
		return errors.New("--once needs a requirements file: give one with -r requirements.txt")
	}
	dir, err := u.dataDir()
	if err != nil {
		return err
	}
	if u.TokensFile != "" && u.WorkerToken == "" { // the worker of this process needs one
		u.WorkerToken = access.NewToken()
	}
	logger, file, err := u.openLog(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	w, err := worker.New(u.workerSettings.config(u.url(), u.WorkerToken, filepath.Join(dir, "worker"), logger))
	if err != nil {
		return err
	}
	fmt.Fprintln(t.err, "Starting. The first start downloads Postgres and the build tools.")
	p, err := startPlane(ctx, u.controlSettings, dir, logger)
	if err != nil {
		return err
	}
	err = u.work(ctx, t, p, w)
	return errors.Join(err, bounded(p.stop))
}

// stopMost is how long everything may take to stop. Whatever is cut off is found and mended by the next start, as after a crash.
const stopMost = 9 * time.Second

func bounded(stop func() error) error {
	done := make(chan error, 1)
	go func() { done <- stop() }()
	select {
	case err := <-done:
		return err
	case <-time.After(stopMost):
		return errors.New("not everything stopped in time; the next start mends that")
	}
}

// work runs the worker and follows the run.
func (u *upCmd) work(ctx context.Context, t *terminal, p *plane, w *worker.Worker) error {
	if err := w.Prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err() // what was cut short says nothing
		}
		return err
	}
	p.announce(t)
	fmt.Fprintln(t.out, "Log   ", filepath.Join(p.dir, logName))
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stopWorker := func() error {
		cancel()
		return <-ended // it hands back what is leased
	}
	result := make(chan error, 1)
	if u.Requirements != "" {
		c, err := client(u.url(), u.WorkerToken)
		if err != nil {
			return errors.Join(err, stopWorker())
		}
		f := &follower{client: c, url: u.url(), terminal: t, ours: true}
		go func() { result <- f.refine(ctx, u.request) }()
	}
	for {
		select {
		case err := <-result:
			if u.Once || err != nil && ctx.Err() != nil {
				return errors.Join(err, stopWorker())
			}
			var code exit
			if err != nil && !errors.As(err, &code) {
				fmt.Fprintln(t.err, "refinery:", err)
			}
			fmt.Fprintln(t.err, "Serving. Ctrl-C stops.")
			result = nil
		case err := <-p.failed:
			return errors.Join(err, stopWorker())
		case err := <-ended:
			return fmt.Errorf("the worker ended: %w", err)
		case <-ctx.Done():
			fmt.Fprintln(t.err, "Stopping.")
			if u.Requirements != "" && result != nil {
				<-result
			}
			return stopWorker()
		}
	}
}

// announce says where everything is.
func (p *plane) announce(t *terminal) {
	page := "none"
	if p.UIAddr != "" && p.has(roleReadAPI) {
		page = "http://" + reachable(p.UIAddr)
	}
	fmt.Fprintf(t.out, "API    %s\nPage   %s\nIndex  %s/simple/\nData   %s\n", p.url(), page, p.url(), p.dir)
}

func (w workerSettings) config(url, token, dir string, logger *slog.Logger) worker.Config {
	return worker.Config{
		URL: url, Token: token, Dir: dir, Slots: w.Slots, Python: w.Python, BuildUser: w.BuildUser,
		Timeout: w.BuildTimeout, Memory: w.BuildMemory << 20, Disk: w.BuildDisk << 20, Logger: logger,
		Packages: w.AllowSystemPackages,
	}
}

// serveCmd runs the control plane without a worker.
type serveCmd struct {
	controlSettings
	Roles []string `env:"ROLES" default:"writeapi,readapi,handlers,projector,policies,relay" enum:"writeapi,readapi,handlers,projector,policies,relay" placeholder:"ROLE,…" help:"What this process does: writeapi, readapi, handlers, projector, policies, relay. Of the processes that share a database each role needs one; any number may have it. Default: all."`
}

// Run serves until Ctrl-C.
func (s *serveCmd) Run(ctx context.Context, t *terminal) error {
	dir, err := s.dataDir()
	if err != nil {
		return err
	}
	s.controlSettings.Roles = s.Roles
	p, err := startPlane(ctx, s.controlSettings, dir, s.logTo(t.err).With("process", os.Getpid()))
	if err != nil {
		return err
	}
	p.announce(t)
	select {
	case err = <-p.failed:
	case <-ctx.Done():
		fmt.Fprintln(t.err, "Stopping.")
	}
	return errors.Join(err, bounded(p.stop))
}

// workerCmd runs a worker alone.
type workerCmd struct {
	settings
	workerSettings
	URL   string `env:"REFINERY_URL" default:"http://127.0.0.1:8080" help:"The control plane."`
	Token string `name:"worker-token" env:"WORKER_TOKEN" help:"Token for the control plane. No build sees it."`
	ID    string `env:"WORKER_ID" help:"Name of this worker. Default: the host's name and something random, kept in the data folder."`

	WebhookAddr string `env:"WORKER_WEBHOOK_ADDR" placeholder:"HOST:PORT" help:"Where a control plane's webhook wakes this worker (its WORKER_WEBHOOK_URL); it must send the worker's token. Default: nowhere."`
}

// Run works until Ctrl-C, then hands back what is leased.
func (c *workerCmd) Run(ctx context.Context, t *terminal) error {
	dir, err := c.dataDir()
	if err != nil {
		return err
	}
	logger := c.logger(t.err, c.Token)
	config := c.config(c.URL, c.Token, filepath.Join(dir, "worker"), logger)
	config.ID = c.ID
	w, err := worker.New(config)
	if err != nil {
		return err
	}
	if c.WebhookAddr == "" {
		return w.Run(ctx)
	}
	host, _, err := net.SplitHostPort(c.WebhookAddr)
	if err != nil {
		return fault.New(fault.Invalid, "WORKER_WEBHOOK_ADDR is not of the form host:port, such as 127.0.0.1:8090")
	}
	if ip := net.ParseIP(host); c.Token == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fault.New(fault.Invalid, "a webhook that others reach needs a token: set WORKER_TOKEN")
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.WebhookAddr)
	if err != nil {
		return fault.New(fault.Invalid, "cannot listen on %s (%w): set WORKER_WEBHOOK_ADDR to another address", c.WebhookAddr, err)
	}
	server := &http.Server{Handler: w.Webhook(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer server.Close()
		return w.Run(ctx)
	})
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the webhook: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// migrateCmd brings the database up to date.
type migrateCmd struct {
	PostgresDSN string `env:"POSTGRES_DSN" required:"" placeholder:"URL" help:"The database."`
}

// Run migrates.
func (m *migrateCmd) Run(ctx context.Context, t *terminal) error {
	pool, err := eventlog.Pool(ctx, m.PostgresDSN, 1) // says clearly what is wrong with the address
	if err != nil {
		return err
	}
	pool.Close()
	if err := migrations.Up(ctx, m.PostgresDSN); err != nil {
		return err
	}
	fmt.Fprintln(t.out, "The database is up to date.")
	return nil
}
