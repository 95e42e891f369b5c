package postgres

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// spawn runs f on a goroutine whose thread has the account's credentials and ends with it. Linux keeps credentials per thread, and a
// child process inherits those of the thread that starts it; so what f starts and writes is the account's, while the rest of the
// program stays root. (syscall.Setuid would change all threads; to run this program again as the account, the account would have to
// be allowed to read it.)
func spawn(a account, f func(error)) {
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime then ends the thread, and starts no other from it
		if unix.Gettid() != unix.Getpid() {
			f(become(a))
			return
		}
		// The process's main thread cannot end. It is kept busy until another one has been found.
		defer runtime.UnlockOSThread()
		found := make(chan struct{})
		spawn(a, func(err error) { close(found); f(err) })
		<-found
	}()
}

func become(a account) error {
	uid, gid := uintptr(a.uid), uintptr(a.gid)
	for _, call := range []struct {
		name             string
		trap, a1, a2, a3 uintptr
	}{
		{"setgroups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"setresgid", unix.SYS_SETRESGID, gid, gid, gid},
		{"setresuid", unix.SYS_SETRESUID, uid, uid, uid}, // last: it takes away the right to do the others
	} {
		if _, _, errno := unix.RawSyscall(call.trap, call.a1, call.a2, call.a3); errno != 0 {
			return fmt.Errorf("postgres does not run as root, and this process may not become uid %d (%s: %w): run as an ordinary user, or %s", a.uid, call.name, errno, remedy)
		}
	}
	return nil
}
