package testserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// databases of a server that is started here. One that the environment names usually has 16.
const databases = 512

var shared struct {
	sync.Mutex
	options *redis.Options // of the server that tests share
	next    int
	used    map[int]bool
	err     error
}

// Redis returns the URL of an empty database of the server that the tests of this binary share, or of REDIS_URL's. It is emptied when the
// test ends.
func Redis(t testing.TB) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.options == nil && shared.err == nil {
		shared.used = map[int]bool{}
		if url := os.Getenv("REDIS_URL"); url != "" {
			if shared.options, shared.err = redis.ParseURL(url); shared.err != nil {
				shared.err = errors.New("REDIS_URL is not a URL of Redis") // the error would show the password
			}
		} else if lacksRedis(t); shared.err == nil {
			var p *process
			if p, shared.err = newRedis(); shared.err == nil {
				pgtest.AtEnd(p.stop)
				shared.err = p.start()
				shared.options = &redis.Options{Addr: p.addr}
			}
		}
	}
	if shared.err != nil {
		t.Fatal("testserver:", shared.err)
	}
	// A database that holds something is somebody's: another test binary's, which shares the server, or a person's.
	for n := 1; n < databases; n++ {
		if shared.used[n] {
			continue
		}
		o := *shared.options
		o.DB = n
		c := redis.NewClient(&o)
		ok, err := c.SetNX(t.Context(), "refinery:test", os.Getpid(), time.Hour).Result()
		if err == nil && ok {
			var size int64
			if size, err = c.DBSize(t.Context()).Result(); size > 1 {
				ok, err = false, c.Del(t.Context(), "refinery:test").Err()
			}
		}
		if err != nil {
			t.Fatal("testserver: no empty database in Redis:", errors.Join(err, c.Close()))
		}
		if !ok {
			if err := c.Close(); err != nil {
				t.Fatal("testserver:", err)
			}
			continue
		}
		shared.used[n] = true
		t.Cleanup(func() {
			if err := errors.Join(c.FlushDB(context.Background()).Err(), c.Close()); err != nil {
				t.Error("testserver:", err)
			}
			shared.Lock()
			defer shared.Unlock()
			delete(shared.used, n)
		})
		return redisURL(&o)
	}
	t.Fatal("testserver: no empty database in Redis")
	return ""
}

func redisURL(o *redis.Options) string {
	scheme, user := "redis", ""
	if o.TLSConfig != nil {
		scheme = "rediss"
	}
	if o.Password != "" {
		user = o.Username + ":" + o.Password + "@"
	}
	return fmt.Sprintf("%s://%s%s/%d", scheme, user, o.Addr, o.DB)
}

// NewRedis starts a server of the test's own, with further settings such as "--maxmemory", "1mb".
func NewRedis(t testing.TB, settings ...string) *Server {
	t.Helper()
	lacksRedis(t)
	p, err := newRedis(settings...)
	own(t, p, err)
	return &Server{process: p}
}

func lacksRedis(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		pgtest.Missing(t, "Redis", "apt-get install redis-server, or set REDIS_URL")
	}
}

func newRedis(settings ...string) (*process, error) {
	p, err := newProcess("redis")
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		return nil, err
	}
	p.command = func() *exec.Cmd {
		cmd := exec.Command("redis-server", append([]string{
			"--bind", host, "--port", port, "--dir", p.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
			"--databases", fmt.Sprint(databases),
		}, settings...)...)
		cmd.Dir = p.dir
		return cmd
	}
	p.ready = func() error {
		c := redis.NewClient(&redis.Options{Addr: p.addr, MaxRetries: -1})
		err := c.Ping(context.Background()).Err()
		if err != nil && errors.As(err, new(redis.Error)) && redis.HasErrorPrefix(err, "NOAUTH") {
			err = nil // a test's setting
		}
		return errors.Join(err, c.Close())
	}
	return p, nil
}
