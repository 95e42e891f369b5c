// Command refinery is the whole of the Wheel Refinery: control plane, worker, client. It is the only place with flags, environment and
// wiring.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the linker.
var version = "dev"

type cli struct {
	Up      upCmd      `cmd:"" help:"Run everything in this process: Postgres, bus, control plane, page and a worker."`
	Serve   serveCmd   `cmd:"" help:"Run the control plane and the page, without a worker."`
	Worker  workerCmd  `cmd:"" help:"Run a worker that plans and builds for a control plane."`
	Build   buildCmd   `cmd:"" help:"Submit a requirements file to a control plane and follow the run."`
	Migrate migrateCmd `cmd:"" help:"Bring the tables of the database to this version, and stop."`
	Token   tokenCmd   `cmd:"" help:"Tokens for the API."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// exit is an error that only sets the exit code: all has been said.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Exit codes.
const (
	exitFailed      = 1   // the run did not end with all wheels
	exitTrouble     = 2   // wrong usage, or something that is needed is missing
	exitInterrupted = 130 // Ctrl-C
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	// A first Ctrl-C stops in good order, a second one at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	var c cli
	parser, err := kong.New(&c,
		kong.Name("refinery"), kong.UsageOnError(), kong.Writers(stdout, stderr),
		kong.Description("Builds wheels for the platforms that have none, and knows what was built, what failed, and why."),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(&terminal{stdout, stderr}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "refinery:", err)
		return exitTrouble
	}
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(stderr, "refinery:", err)
		fmt.Fprintln(stderr, "Run `refinery --help` for the commands and `refinery COMMAND --help` for their flags.")
		return exitTrouble
	}
	err = k.Run()
	var code exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "refinery:", err)
	return exitTrouble
}

type versionCmd struct{}

func (versionCmd) Run(t *terminal) error {
	fmt.Fprintln(t.out, "refinery", version)
	return nil
}
