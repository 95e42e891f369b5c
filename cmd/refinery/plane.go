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
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/transport"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/metrics"
	"github.com/wheelrefinery/refinery/internal/postgres"
	"github.com/wheelrefinery/refinery/internal/tracing"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/migrations"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/readapi"
	"github.com/wheelrefinery/refinery/ui"
)

// Connections to Postgres: enough for the writer, each follower and loads; reads have their own.
const (
	writeConns = 28
	readConns  = 16
)

// stopTime is what each part gets to stop in good order.
const stopTime = 5 * time.Second

// plane is a running control plane.
type plane struct {
	controlSettings
	dir    string
	logger *slog.Logger
	stops  []func(context.Context) error
	failed chan error // a part that ended by itself

	pool  *pgxpool.Pool // writes
	reads *pgxpool.Pool // cannot write
	log   *eventlog.Log
	bus   bus.Bus
	read  *projections.Runner

	leases *policies.Leases

	guard   *access.Guard
	metrics *metrics.Metrics
	tracer  *tracing.Tracer // nil: off
	facts   facts
}

// startPlane starts every part and returns when requests are answered. What was started is stopped when a later part fails.
func startPlane(ctx context.Context, c controlSettings, dir string, logger *slog.Logger) (_ *plane, err error) {
	p := &plane{controlSettings: c, dir: dir, logger: logger, failed: make(chan error, 16)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	if err := p.check(); err != nil {
		return nil, err
	}
	if p.tracer, err = tracing.New(ctx, version, logger); err != nil {
		return nil, err
	}
	p.onStop(p.tracer.Close)
	p.metrics = metrics.New(version, p.sources(), logger)
	if err := p.lock(); err != nil {
		return nil, err
	}
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	// Before anything slow: whoever started this wants to know at once.
	listeners, err := p.listen(ctx)
	if err != nil {
		return nil, err
	}
	dsn, err := p.postgres(ctx)
	if err != nil {
		return nil, err
	}
	if p.pool, err = eventlog.Pool(ctx, dsn, writeConns); err != nil {
		return nil, err
	}
	p.onStop(func(context.Context) error { p.pool.Close(); return nil })
	if err := migrations.Up(ctx, dsn); err != nil {
		return nil, err
	}
	if p.reads, err = readapi.Pool(ctx, dsn, readConns); err != nil {
		return nil, err
	}
	p.onStop(func(context.Context) error { p.reads.Close(); return nil })
	if err := p.admit(); err != nil {
		return nil, err
	}
	if p.facts, err = lookUp(ctx, p.reads); err != nil {
		return nil, err
	}
	if p.log, err = eventlog.Open(ctx, p.pool, p.told(eventlog.Options{Owner: name, Logger: logger})); err != nil {
		return nil, err
	}
	p.onStop(func(context.Context) error { p.log.Close(); return nil })
	p.read = projections.New(p.log, p.pool, logger)
	if err := p.read.Setup(ctx); err != nil {
		return nil, err
	}
	if p.bus, err = transport.Open(ctx, c.transport(dir, name, logger)); err != nil {
		return nil, err
	}
	p.onStop(func(context.Context) error { return p.bus.Close() })
	p.leases = policies.NewLeases(p.pool, p.send, logger)
	if err := p.follow(ctx); err != nil {
		return nil, err
	}
	if p.has(roleHandlers) {
		if err := p.handle(ctx); err != nil {
			return nil, err
		}
	}
	if p.has(rolePolicies) {
		if err := p.catalogue(ctx); err != nil {
			return nil, err
		}
	}
	wheels, err := wheelstore.Open(filepath.Join(dir, "wheels"))
	if err != nil {
		return nil, err
	}
	p.onStop(func(context.Context) error { return wheels.Close() })
	handler, err := p.handler(wheels)
	if err != nil {
		return nil, err
	}
	p.serve(listeners[0], handler)
	if len(listeners) > 1 {
		p.serve(listeners[1], ui.Handler(handler))
	}
	tune()
	return p, nil
}

// tune lets the heap grow before it is collected: it is small, and collecting it often took a tenth of the time of a busy control plane.
// The limit keeps that from costing memory where there is much in use. What starting needed comes first, or the heap would be let grow
// to a multiple of that.
func tune() {
	runtime.GC()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(176 << 20)
	}
}

// check refuses settings that cannot be.
func (p *plane) check() error {
	if p.MaxAttempts < 1 || p.MaxAttempts > 100 {
		return fault.New(fault.Invalid, "MAX_ATTEMPTS is not between 1 and 100")
	}
	if _, _, err := net.SplitHostPort(p.HTTPAddr); err != nil {
		return fault.New(fault.Invalid, "HTTP_ADDR is not of the form host:port, such as 127.0.0.1:8080")
	}
	if p.KeepOutcomes < time.Hour {
		return fault.New(fault.Invalid, "KEEP_OUTCOMES is under an hour: a client that repeats a request must still find its outcome")
	}
	return nil
}

// admit makes the guard, and warns where it lets everybody in.
func (p *plane) admit() (err error) {
	p.guard, err = access.New(access.Config{
		Worker: p.WorkerToken, Read: p.ReadToken, File: p.TokensFile, Sessions: p.pool, Logger: p.logger,
	})
	if err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(p.HTTPAddr) // which was checked
	if ip := net.ParseIP(host); !p.guard.Needs(access.Write) && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		p.logger.Warn("the API listens beyond this machine, and neither WORKER_TOKEN nor TOKENS_FILE is set: anybody who reaches it can write")
	}
	return nil
}

func (p *plane) listen(ctx context.Context) (listeners []net.Listener, err error) {
	for _, a := range []struct{ name, addr string }{{"HTTP_ADDR", p.HTTPAddr}, {"UI_ADDR", p.UIAddr}} {
		if a.addr == "" || a.name == "UI_ADDR" && !p.has(roleReadAPI) {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fault.New(fault.Conflict, "%s is taken by another program: stop it, or set %s to another address", a.addr, a.name)
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "cannot listen on %s (%w): set %s to another address", a.addr, err, a.name)
		}
		p.onStop(func(context.Context) error {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) { // its server closed it
				return err
			}
			return nil
		})
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func (p *plane) postgres(ctx context.Context) (dsn string, err error) {
	if p.PostgresDSN != "" {
		return p.PostgresDSN, nil
	}
	server, err := postgres.Start(ctx, filepath.Join(p.dir, "postgres"), postgres.Options{Logger: p.logger})
	if err != nil {
		return "", err
	}
	p.onStop(server.Stop)
	return server.DSN(), nil
}

// send puts commands on the bus.
func (p *plane) send(ctx context.Context, messages []policies.Message) error {
	out := make([]*message.Message, len(messages))
	for i, m := range messages {
		payload, err := commands.Encode(m.Meta, m.Command)
		if err != nil {
			return err
		}
		out[i] = bus.NewMessage(m.Meta.ID.String(), m.Command.Stream(), payload)
	}
	end := p.tracer.Publish(ctx, bus.TopicCommands, out)
	err := p.bus.Publish(bus.TopicCommands, out...)
	end(err)
	if err != nil {
		return fmt.Errorf("the bus does not take commands: %w", err)
	}
	return nil
}

// follow runs what follows the log: read models, policies, the relay.
func (p *plane) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { // there may be nothing else
		<-ctx.Done()
		return nil
	})
	var followers []eventlog.Follower
	if p.has(roleProjector) {
		g.Go(func() error { return p.read.Run(ctx) })
		followers = append(followers, p.read.Operators())
	}
	if p.has(rolePolicies) {
		followers = append(followers,
			policies.Runs(p.pool, p.send), policies.Clear(p.send, p.read.Cleared), p.leases.Follower(), p.hints(), policies.Bulk(p.send, p.log.Outcomes))
		triggers, err := p.triggers()
		if err != nil {
			cancel()
			return err
		}
		if triggers != nil {
			followers = append(followers, triggers.Follower())
		}
	}
	if p.has(roleRelay) {
		followers = append(followers, bus.Relay(p.bus))
	}
	if p.has(roleHandlers) {
		g.Go(func() error { return p.log.Prune(ctx, p.KeepOutcomes) })
	}
	for _, f := range followers {
		g.Go(func() error { return p.log.Run(ctx, f) })
	}
	p.watch("following the log", cancel, g.Wait)
	return nil
}

// handlers is the consumer group of those who handle commands.
const handlers = "handlers"

// handle runs the handler of commands.
func (p *plane) handle(ctx context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := commands.NewHandler(p.log, p.logger)
	router, err := bus.NewRouter(p.bus, p.logger, handlers,
		func(m *message.Message, reason error) error {
			p.metrics.Poisoned()
			return h.Fail(m.Context(), m.UUID, m.Payload, reason)
		},
		map[string]bus.Handler{bus.TopicCommands: func(m *message.Message) error {
			begin := time.Now()
			ctx, end := p.tracer.Handle(m)
			err := h.Handle(ctx, m.Payload)
			end(err)
			p.metrics.Handled(begin, err)
			if err != nil && fault.CodeOf(err) == fault.Invalid {
				return fmt.Errorf("%w: %w", bus.ErrPermanent, err)
			}
			return err
		}})
	if err != nil {
		cancel()
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return h.Run(ctx) })
	g.Go(func() error { return router.Run(ctx) })
	p.watch("handling commands", func() {
		if err := router.Close(); err != nil {
			p.logger.Warn("the router did not close in time; what it held comes again", "error", err)
		}
		cancel()
	}, g.Wait)
	return nil
}

// watch stops a part with the plane, and stops the plane when the part ends by itself.
func (p *plane) watch(what string, cancel func(), wait func() error) {
	done := make(chan struct{})
	stopping := make(chan struct{})
	go func() {
		defer close(done)
		err := wait()
		select {
		case <-stopping:
		default:
			p.failed <- fmt.Errorf("%s ended: %w", what, err)
		}
	}()
	p.onStop(func(ctx context.Context) error {
		close(stopping)
		cancel()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s did not stop in time", what)
		}
	})
}

// Limits of a request's headers; the handler limits the rest.
const (
	headerTime  = 10 * time.Second
	headerBytes = 64 << 10
)

func (p *plane) serve(l net.Listener, h http.Handler) {
	base, cancel := context.WithCancel(context.Background())
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: headerBytes,
		ErrorLog:    slog.NewLogLogger(p.logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return base }, // ends long polls when we stop
	}
	p.watch("serving "+l.Addr().String(), func() {
		cancel()
		// Less than there is: Shutdown waits five seconds for a connection on which no request has come, as clients open in advance.
		ctx, stop := context.WithTimeout(context.Background(), stopTime/2)
		defer stop()
		if err := s.Shutdown(ctx); err != nil {
			s.Close()
		}
	}, func() error { return s.Serve(l) })
}

func (p *plane) onStop(f func(context.Context) error) { p.stops = append(p.stops, f) }

// stop stops everything, the last started first.
func (p *plane) stop() error {
	var errs []error
	for len(p.stops) > 0 {
		f := p.stops[len(p.stops)-1]
		p.stops = p.stops[:len(p.stops)-1]
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		errs = append(errs, f(ctx))
		cancel()
	}
	return errors.Join(errs...)
}

func parseID(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil {
		return id, fault.New(fault.Internal, "the control plane answered with an id that is none")
	}
	return id, nil
}
