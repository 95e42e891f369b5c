package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// Roles of a control-plane process. Of those that share a database, each role needs one that has it; any number may.
const (
	roleWriteAPI  = "writeapi"  // answers writes
	roleReadAPI   = "readapi"   // answers reads, serves the index and the page
	roleHandlers  = "handlers"  // handles commands
	roleProjector = "projector" // feeds the read models
	rolePolicies  = "policies"  // reacts to events
	roleRelay     = "relay"     // tells the bus what waits for workers
)

// has says that this process has a role.
func (c controlSettings) has(role string) bool {
	return len(c.Roles) == 0 || slices.Contains(c.Roles, role)
}

// absent lists the roles whose requests others answer.
func (p *plane) absent() (roles []string) {
	for _, role := range []string{roleWriteAPI, roleReadAPI} {
		if !p.has(role) {
			roles = append(roles, role)
		}
	}
	return roles
}

// lock keeps a database in the data folder to one process. Those that share one elsewhere share the folder as well: bus and wheels lie there.
func (p *plane) lock() error {
	path, how := filepath.Join(p.dir, "lock"), unix.LOCK_SH
	if p.PostgresDSN == "" {
		how = unix.LOCK_EX
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fault.New(fault.Invalid, "the data folder cannot be written (%w): set DATA_DIR to one that can", err)
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		return fault.New(fault.Conflict, "another refinery runs on %s: stop it, or set DATA_DIR to another folder; several share one only where all have POSTGRES_DSN", p.dir)
	}
	p.onStop(func(context.Context) error { return f.Close() })
	return nil
}

const newNames = 10

// name returns this process's name among those that share the database. It takes over that of a dead one of the same folder, and so its
// leases, at once: a process that is started again need not wait for those to run out.
func (p *plane) name() (string, error) {
	dir := filepath.Join(p.dir, "processes")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("name the process: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("name the process: %w", err)
	}
	names := make([]string, 0, len(entries)+newNames)
	for _, e := range entries {
		if _, err := uuid.Parse(e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	for range newNames { // another process that starts may see a new one and lock it first
		names = append(names, uuid.NewString())
	}
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrPermission) {
			continue // another user's
		}
		if err != nil {
			return "", fmt.Errorf("name the process: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			p.onStop(func(context.Context) error { return f.Close() })
			return name, nil
		}
		f.Close()
	}
	return "", fault.New(fault.Internal, "no name could be locked in %s", dir)
}
