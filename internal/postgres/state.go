package postgres

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// state is what must outlive the process beside the cluster itself. It holds the password: the file is its owner's alone.
type state struct {
	Password    string            `json:"password"`
	Port        int               `json:"port"`
	Parameters  map[string]string `json:"parameters"`  // of the last start
	Initialized bool              `json:"initialized"` // initdb ran to its end and the database exists
}

func (c *cluster) statePath() string { return filepath.Join(c.dir, "state.json") }

func (c *cluster) loadState() error {
	b, err := os.ReadFile(c.statePath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.state = state{Password: rand.Text()}
		return c.saveState()
	case err != nil:
		return fmt.Errorf("postgres state: %w", err)
	}
	if err := json.Unmarshal(b, &c.state); err != nil {
		return fmt.Errorf("postgres state: %s: %w", c.statePath(), err)
	}
	return nil
}

// saveState replaces the file in one step: a torn one would lose the password.
func (c *cluster) saveState() error {
	b, err := json.Marshal(c.state)
	if err != nil {
		return fmt.Errorf("postgres state: %w", err)
	}
	f, err := os.CreateTemp(c.dir, "state-*.tmp") // has mode 0600
	if err != nil {
		return fmt.Errorf("postgres state: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("postgres state: %w", err)
	}
	if err := os.Rename(f.Name(), c.statePath()); err != nil {
		return fmt.Errorf("postgres state: %w", err)
	}
	return nil
}

// configure writes the parameters into postgresql.auto.conf, which Postgres reads last, and not on a command line: pg_ctl would
// pass that through a shell. What somebody set with ALTER SYSTEM is replaced.
func (c *cluster) configure(port int) error {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `''`)
	lines := []string{fmt.Sprintf("port = %d\n", port)}
	for k, v := range c.parameters {
		if strings.ContainsAny(k+v, "\r\n") || k == "" {
			return fmt.Errorf("postgres parameter %q: not a name and a value of one line", k)
		}
		lines = append(lines, fmt.Sprintf("%s = '%s'\n", k, quote.Replace(v)))
	}
	slices.Sort(lines)
	text := "# Written anew by every start of the refinery.\n" + strings.Join(lines, "")
	if err := os.WriteFile(filepath.Join(c.data, "postgresql.auto.conf"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("postgres configuration: %w", err)
	}
	return nil
}
