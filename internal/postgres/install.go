package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

const remedy = "set POSTGRES_DSN to a server you run"

// supported refuses platforms that the library has no binaries for; it would ask for them and report a missing version.
func supported(goos, goarch string) error {
	has := map[string][]string{
		"linux":  {"amd64", "arm64", "arm", "ppc64le"},
		"darwin": {"amd64", "arm64"},
	}
	if !slices.Contains(has[goos], goarch) {
		return fmt.Errorf("%w for %s/%s: %s", ErrUnavailable, goos, goarch, remedy)
	}
	return nil
}

// install downloads and unpacks the binaries and creates the cluster, whichever is missing. Both end with a mark, because files
// that are there may be half of what a killed process was writing. Nothing runs when it returns.
func (c *cluster) install(ctx context.Context) error {
	complete := filepath.Join(c.bin, ".complete")
	if c.state.Initialized && exists(complete) {
		return nil
	}
	if err := supported(runtime.GOOS, runtime.GOARCH); err != nil {
		return err
	}
	if err := c.keepData(); err != nil {
		return err
	}
	if !exists(complete) {
		unlock, err := lock(ctx, filepath.Join(c.cache, "lock")) // several processes may share the cache
		if err != nil {
			return err
		}
		defer unlock()
		if exists(complete) {
			unlock()
		} else if err := os.RemoveAll(c.bin); err != nil {
			return fmt.Errorf("postgres binaries: %w", err)
		}
	}
	if !c.hasArchive() && !exists(complete) {
		c.log.Info("downloading Postgres, about 15 MB, once", "version", Version, "to", c.cache)
	}
	port, err := freePort(0)
	if err != nil {
		return err
	}
	db := embedded.NewDatabase(embedded.DefaultConfig().
		Version(embedded.PostgresVersion(Version)).
		CachePath(c.cache).BinariesPath(c.bin).RuntimePath(filepath.Join(c.dir, "run")).DataPath(c.data).
		Port(uint32(port)).Username(name).Password(c.state.Password).Database(name).
		// The order of bytes on every platform, and the fastest.
		Locale("C").Encoding("UTF8").
		StartParameters(map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "jit": "off"}).
		StartTimeout(time.Minute).Logger(io.Discard))
	defer removeLibraryLog()
	err = db.Start()
	http.DefaultClient.CloseIdleConnections() // the library's download
	if err != nil {
		if !c.hasArchive() {
			return fmt.Errorf("%w: it could not be downloaded (%w): connect this machine to the network once, or %s", ErrUnavailable, err, remedy)
		}
		return fmt.Errorf("postgres cannot be set up in %s: %w", c.dir, err)
	}
	if err := db.Stop(); err != nil {
		return fmt.Errorf("postgres cannot be set up in %s: %w", c.dir, err)
	}
	if !exists(complete) {
		if err := os.WriteFile(complete, nil, 0o644); err != nil {
			return fmt.Errorf("postgres binaries: %w", err)
		}
	}
	c.state.Initialized = true
	return c.saveState()
}

// keepData removes a cluster that was never finished, and makes sure that the library, which deletes a cluster that it does not
// know, finds one of its version otherwise.
func (c *cluster) keepData() error {
	if !c.state.Initialized {
		// An initdb whose parent was killed may still be writing.
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := os.RemoveAll(c.data)
			if err == nil {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("postgres: unfinished cluster: %w", err)
			}
		}
	}
	major, _, _ := strings.Cut(Version, ".")
	b, err := os.ReadFile(filepath.Join(c.data, "PG_VERSION"))
	if err != nil {
		return fmt.Errorf("postgres: the cluster in %s is damaged: %w", c.data, err)
	}
	if have := strings.TrimSpace(string(b)); have != major {
		return fmt.Errorf("postgres: the cluster in %s is of version %s, this program runs %s: move it away, or %s", c.data, have, major, remedy)
	}
	return nil
}

func (c *cluster) hasArchive() bool {
	found, _ := filepath.Glob(filepath.Join(c.cache, "embedded-postgres-binaries-*-"+Version+".txz")) // the pattern is sound
	return len(found) > 0
}

// removeLibraryLog deletes the file in the system's temporary folder that the library leaves behind. It does not say its name,
// but keeps it open.
func removeLibraryLog() {
	fds, _ := os.ReadDir("/proc/self/fd") // Linux has it; elsewhere a small file stays
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err == nil && strings.HasPrefix(filepath.Base(to), "embedded_postgres_log") {
			_ = os.Remove(to)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// lock takes a lock between processes; the function it returns may be called twice.
func lock(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
