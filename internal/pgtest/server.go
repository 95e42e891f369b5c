package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/wheelrefinery/refinery/internal/postgres"
)

// server is a Postgres in a folder of its own in the system's temporary folder. The folder's name carries the process that made it.
type server struct {
	pg  *postgres.Server
	dir string
}

const prefix = "refinery-test-pg-"

// fast are the server parameters of tests: nothing has to survive a crash of the machine.
var fast = map[string]string{"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}

func startServer(ctx context.Context) (*server, error) {
	if err := sweep(ctx); err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir, err := TempDir()
	if err != nil {
		return nil, err
	}
	pg, err := postgres.Start(ctx, filepath.Join(dir, "pg"), postgres.Options{Parameters: fast, CacheDir: cache})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &server{pg, dir}, nil
}

func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(s.pg.Stop(ctx), os.RemoveAll(s.dir))
}

// TempDir makes a folder that Postgres can reach when root runs the tests: other than testing.T.TempDir, it is not closed to
// others. The caller removes it; that of a process that died is removed, and its server stopped, by the next one.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("test server: %w", err)
	}
	return dir, os.Chmod(dir, 0o755)
}

// CacheDir returns the folder where test binaries share what Postgres was downloaded to.
func CacheDir() (string, error) {
	uid := os.Geteuid()
	if uid != 0 { // root's own folders are closed to the user that Postgres runs as
		if user, err := os.UserCacheDir(); err == nil {
			dir := filepath.Join(user, "refinery-test")
			if os.MkdirAll(dir, 0o755) == nil {
				return dir, nil
			}
		}
	}
	// Anybody can make a folder there, and what it holds is run.
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("refinery-test-%d", uid))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("test cache: %w", err)
	}
	if !mine(dir) {
		return "", fmt.Errorf("test cache: %s is not a folder that only this user can write to: remove it", dir)
	}
	return filepath.Join(dir, "pg"), nil // which postgres.Start hands to the user that Postgres runs as
}

// sweep stops the servers that killed test binaries left, and removes their folders.
func sweep(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return fmt.Errorf("stale test servers: %w", err)
	}
	var errs []error
	for _, dir := range dirs {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		pid, err := strconv.Atoi(number)
		if err != nil || pid < 2 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || !mine(dir) {
			continue
		}
		claimed := fmt.Sprintf("%s%s%d-%s", strings.TrimSuffix(dir, filepath.Base(dir)), prefix, os.Getpid(), filepath.Base(dir))
		if os.Rename(dir, claimed) != nil {
			continue // another test binary was faster
		}
		dir = claimed
		pg := filepath.Join(dir, "pg")
		if _, err := os.Stat(filepath.Join(pg, "data")); err == nil {
			errs = append(errs, postgres.Stop(ctx, pg))
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// mine says whether dir is a folder of this user, and nobody else can write to it.
func mine(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
