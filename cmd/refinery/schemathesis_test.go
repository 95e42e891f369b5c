package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

const schemathesisVersion = "4.32.5"

// schemathesis returns the program, in a virtual environment that is kept for the next time.
func schemathesis(t *testing.T) string {
	t.Helper()
	cache, err := pgtest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	venv := filepath.Join(cache, "schemathesis-"+schemathesisVersion)
	program := filepath.Join(venv, "bin", "schemathesis")
	if exec.Command(program, "--version").Run() == nil {
		return program
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", "--clear", venv},
		{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "schemathesis==" + schemathesisVersion},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			pgtest.Missing(t, "schemathesis "+schemathesisVersion, "Python 3.10 or newer with venv, and a package index: "+string(out))
		}
	}
	return program
}

// TestContractHolds sends what the contract allows, and what it does not, to the running program: every answer is one that the contract
// documents, and none is a server error.
func TestContractHolds(t *testing.T) {
	program := schemathesis(t)
	config, err := filepath.Abs("testdata/schemathesis.toml")
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"open": "", "with a token": "s3cret"} {
		t.Run(name, func(t *testing.T) {
			p := newProgram(t)
			serve := p.command("serve")
			serve.Env = append(serve.Env, "WORKER_TOKEN="+token, "READ_TOKEN="+token)
			if err := serve.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = serve.Process.Signal(syscall.SIGTERM)
				if err := serve.Wait(); err != nil {
					t.Errorf("the program ended with %v\n%s", err, p.logTail())
				}
			}()
			eventually(t, 30*time.Second, p.ready)
			args := []string{
				"--config-file", config, "run", "http://" + p.api + "/openapi.yaml", "--phases", "examples,coverage,fuzzing", "--max-examples", "20",
				"--seed", "1", "--continue-on-failure", "--no-shrink", "--generation-database", "none", "--request-timeout", "30", "--warnings", "off",
				"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,ignored_auth",
			}
			if token != "" {
				args = append(args, "--header", "X-Worker-Token: "+token)
			}
			c := exec.Command(program, args...)
			c.Dir = t.TempDir()
			c.Env = append(os.Environ(), "NO_COLOR=1")
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "passed") {
				t.Errorf("%v\n%s\n%s", err, out[max(0, len(out)-30_000):], p.logTail())
			}
		})
	}
}
