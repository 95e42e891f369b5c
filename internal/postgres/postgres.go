// Package postgres runs the embedded default database: a Postgres of its own in a directory, started by the program when no
// POSTGRES_DSN is given.
//
// The binaries are downloaded once; the cluster, its password, its port and its log stay in the directory. The server outlives a
// killed program: the next Start on the same directory takes it over. It listens on 127.0.0.1 only and has no Unix socket. Started
// by root, it runs as an unprivileged user (see user_linux.go).
//
// Two programs must not use one directory at the same time: the caller locks it.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
)

// Version is the Postgres release that runs.
const Version = string(embedded.V17)

const name = "refinery" // of the superuser and of the database

// ErrUnavailable says that no Postgres can be had here: the platform has no binary, or it could not be downloaded.
var ErrUnavailable = errors.New("no embedded Postgres")

// Options of Start. The zero value is what production uses.
type Options struct {
	Logger     *slog.Logger      // nil logs nothing
	Parameters map[string]string // server settings that override the defaults
	CacheDir   string            // where archive and binaries are kept; empty: in the cluster's directory. May be shared.
}

// Server is a running Postgres.
type Server struct {
	c *cluster
}

// cluster is what Start knows of a directory. Its methods run as the user that the server runs as.
type cluster struct {
	dir, data, cache, bin string
	log                   *slog.Logger
	user                  account
	parameters            map[string]string
	state                 state
}

func defaults() map[string]string {
	return map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"max_connections":         "100",
		"shared_buffers":          "128MB",
		"max_wal_size":            "1GB",
		"fsync":                   "on",
		"full_page_writes":        "on",
		"synchronous_commit":      "on",
		"jit":                     "off", // compiling a plan takes longer than any query of ours runs
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"log_checkpoints":         "off",
	}
}

// Start makes sure that a Postgres runs on dir, and returns it when it answers. It takes over a server that an earlier process
// left running, if that was started with the same parameters, and replaces it otherwise. The first Start downloads Postgres and
// creates the cluster; where it cannot, the error is an ErrUnavailable that says what to do.
//
// When ctx ends, Start returns soon; what it has begun by then is picked up by the next Start.
func Start(ctx context.Context, dir string, o Options) (*Server, error) {
	c, err := open(dir, o)
	if err != nil {
		return nil, err
	}
	return run(ctx, c.user, func() (*Server, error) { return c.up(ctx) })
}

// Stop ends the server that runs on dir, if one does: also one that another process started and left.
func Stop(ctx context.Context, dir string) error {
	c, err := open(dir, Options{})
	if err != nil {
		return err
	}
	_, err = run(context.WithoutCancel(ctx), c.user, func() (struct{}, error) {
		if err := c.loadState(); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, c.stop(ctx)
	})
	return err
}

// Stop ends the server: it lets running statements go (they fail) and writes everything to disk. When ctx ends first, the server is
// stopped at once, and the next start recovers from its log; nothing that was committed is lost either way.
func (s *Server) Stop(ctx context.Context) error {
	_, err := run(context.WithoutCancel(ctx), s.c.user, func() (struct{}, error) { return struct{}{}, s.c.stop(ctx) })
	return err
}

// DSN is the connection string of the server's database, with the password: it is not for logs.
func (s *Server) DSN() string { return s.c.dsn(s.c.state.Port) }

func (c *cluster) dsn(port int) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(name, c.state.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: name, RawQuery: "sslmode=disable",
	}
	return u.String()
}

func open(dir string, o Options) (*cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("postgres directory: %w", err)
	}
	cache := dir
	if o.CacheDir != "" {
		if cache, err = filepath.Abs(o.CacheDir); err != nil {
			return nil, fmt.Errorf("postgres cache directory: %w", err)
		}
	}
	for _, d := range []string{dir, cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("postgres directory: %w", err)
		}
	}
	// The kernel and the server report paths without links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("postgres directory: %w", err)
	}
	c := &cluster{
		dir: dir, data: filepath.Join(dir, "data"), cache: cache, bin: filepath.Join(cache, "bin-"+Version),
		log: o.Logger, parameters: defaults(),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	maps.Copy(c.parameters, o.Parameters)
	if c.user, err = owner(c.data); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, cache} {
		if err := c.user.own(d); err != nil {
			return nil, fmt.Errorf("postgres directory: %w", err)
		}
	}
	return c, nil
}

// up runs as the server's user.
func (c *cluster) up(ctx context.Context) (*Server, error) {
	for _, d := range []string{c.dir, c.cache} {
		if err := reachable(d); err != nil {
			return nil, err
		}
	}
	if err := c.loadState(); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if c.adopt(ctx) {
			return &Server{c}, nil
		}
		// A start can lose a race: for the port, or against what a killed predecessor had still under way.
		err := c.launch(ctx)
		if err == nil {
			return &Server{c}, nil
		}
		if attempt == 3 || ctx.Err() != nil || errors.Is(err, ErrUnavailable) {
			return nil, err
		}
		c.log.Warn("postgres did not start, trying again", "error", err)
	}
}

// adopt takes over a server that runs on this cluster with our parameters.
func (c *cluster) adopt(ctx context.Context) bool {
	pm, ok := c.postmaster()
	if !ok || !c.state.Initialized || !maps.Equal(c.parameters, c.state.Parameters) {
		return false
	}
	if err := c.answers(ctx, pm.port); err != nil {
		c.log.Info("postgres runs but does not answer", "pid", pm.pid, "error", err)
		return false
	}
	c.state.Port = pm.port
	c.log.Info("postgres was running already", "pid", pm.pid, "port", pm.port)
	return true
}

// launch starts a server, installing it first if need be. A server that runs is in the way by now: adopt would not have it.
func (c *cluster) launch(ctx context.Context) error {
	if err := c.stop(ctx); err != nil {
		return err
	}
	if err := c.install(ctx); err != nil {
		return err
	}
	port, err := freePort(c.state.Port)
	if err != nil {
		return err
	}
	c.state.Port, c.state.Parameters = port, c.parameters
	if err := c.saveState(); err != nil { // before the start, so that what runs is known whenever we are killed
		return err
	}
	if err := c.configure(port); err != nil {
		return err
	}
	began := time.Now()
	if err := c.pgctlStart(ctx); err != nil {
		return err
	}
	if err := c.answers(ctx, port); err != nil {
		return fmt.Errorf("postgres has started but does not answer: %w", err)
	}
	c.log.Info("postgres started", "port", port, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// answers says whether the server on port is the one of this cluster and lets us in.
func (c *cluster) answers(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.dsn(port))
	if err != nil {
		return err // pgx leaves the password out
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var dir string
	if err := conn.QueryRow(ctx, "show data_directory").Scan(&dir); err != nil {
		return err
	}
	if dir != c.data {
		return fmt.Errorf("port %d belongs to the Postgres of %s", port, dir)
	}
	return nil
}

// freePort returns want if it can be listened on, and any free port otherwise.
func freePort(want int) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(want)))
	if err != nil && want != 0 {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return 0, fmt.Errorf("no free port for postgres: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
