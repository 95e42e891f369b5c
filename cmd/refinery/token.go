package main

import (
	"fmt"

	"github.com/wheelrefinery/refinery/internal/access"
)

type tokenCmd struct {
	New tokenNewCmd `cmd:"" help:"Make a token: print it once, and the line for TOKENS_FILE, which does not hold it."`
}

type tokenNewCmd struct {
	Name  string         `arg:"" help:"Who will use it: the actor of what is done with it."`
	Scope []access.Scope `default:"read" placeholder:"SCOPE,…" help:"What it may do: read, write, worker, admin. Each includes read, admin includes write. Default: read."`
}

// Run prints.
func (c *tokenNewCmd) Run(t *terminal) error {
	token := access.NewToken()
	line, err := access.Line(c.Name, c.Scope, token)
	if err != nil {
		return err
	}
	fmt.Fprintln(t.err, "The token, which is shown only now:")
	fmt.Fprintln(t.out, token)
	fmt.Fprintln(t.err, "The line for TOKENS_FILE:")
	fmt.Fprintln(t.out, line)
	return nil
}
