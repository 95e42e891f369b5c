package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// account is who the server runs as. Postgres refuses root.
type account struct {
	uid, gid int
	drop     bool // this process is root, and the account is another
}

// owner decides who runs the cluster: who made it, otherwise this process's user, and for root "postgres" or "nobody".
func owner(data string) (account, error) {
	a := account{uid: os.Geteuid(), gid: os.Getegid()}
	made, has := madeBy(data)
	if a.uid != 0 {
		if has && made.uid != a.uid {
			return a, fmt.Errorf("the postgres cluster %s belongs to another user (uid %d): run as that user or root, or set DATA_DIR elsewhere", data, made.uid)
		}
		return a, nil
	}
	if has && made.uid != 0 {
		return made, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid > 0 {
			return account{uid, gid, true}, nil
		}
	}
	return account{65534, 65534, true}, nil
}

func madeBy(path string) (account, bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return account{}, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return account{}, false
	}
	return account{int(st.Uid), int(st.Gid), true}, true
}

// own hands a directory to the account.
func (a account) own(dir string) error {
	if !a.drop {
		return nil
	}
	return os.Chown(dir, a.uid, a.gid)
}

// run calls f with the account's rights and returns what it returns. When ctx ends and f does not heed it (the library's download
// does not), run returns without it.
func run[T any](ctx context.Context, a account, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	work := func(err error) {
		r := result{err: err}
		if err == nil {
			r.v, r.err = f()
		}
		done <- r
	}
	if a.drop {
		spawn(a, work)
	} else {
		go work(nil)
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-time.After(3 * time.Second):
		var zero T
		return zero, context.Cause(ctx)
	}
}

// reachable says which folder keeps the calling user from dir.
func reachable(dir string) error {
	_, err := os.Stat(filepath.Join(dir, "."))
	if _, listErr := os.ReadDir(dir); err == nil {
		err = listErr
	}
	if err == nil {
		return nil
	}
	blocked := dir
	for p := dir; p != filepath.Dir(p); p = filepath.Dir(p) {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrPermission) {
			blocked = filepath.Dir(p)
		}
	}
	return fmt.Errorf("postgres runs as an unprivileged user, which may not enter %s: set DATA_DIR to a folder that everybody can reach (%w)", blocked, err)
}
