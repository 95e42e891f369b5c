package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What the virtual environment holds. tomli reads pyproject.toml where Python is older than 3.11.
var requirements = []string{"uv==0.13.9", "packaging==26.3", "pyproject_hooks==1.3.3", `tomli==2.5.0; python_version < "3.11"`}

// Tags say what a worker can build for.
type Tags struct {
	Interpreter   string `json:"interpreter"`    // path of the Python that builds
	PythonVersion string `json:"python_version"` // such as 3.11.7
	PythonTag     string `json:"python_tag"`     // such as cp311
	PlatformTag   string `json:"platform_tag"`   // such as linux_x86_64
}

// Tags returns what the worker builds for, once Prepare has found it out.
func (w *Worker) Tags() Tags { return w.tags }

// Prepare finds the interpreter and makes the virtual environment, unless both are there from an earlier start. Its errors say what
// to install or to set.
func (w *Worker) Prepare(ctx context.Context) error {
	if err := w.identify(); err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	found, err := w.interpreter(ctx)
	if err != nil {
		return err
	}
	if err := w.install(ctx, found); err != nil {
		return err
	}
	w.clean()
	w.forget()
	return nil
}

// identify decides as whom builds run.
func (w *Worker) identify() error {
	w.builder = identity{uid: -1, gid: -1}
	root := os.Getuid() == 0
	if w.Packages && !root {
		return errors.New("only root can install packages: start as root or leave --allow-system-packages out")
	}
	switch {
	case w.BuildUser == "":
		w.pool = root
	case root && w.BuildUser == "root":
	default:
		u, err := user.Lookup(w.BuildUser)
		if err != nil {
			return fmt.Errorf("the build user: %w", err)
		}
		uid, err := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err = errors.Join(err, err2); err != nil {
			return fmt.Errorf("the build user: %w", err)
		}
		if !root && uid != os.Getuid() {
			return fmt.Errorf("only root can build as another user: start as root or leave the build user %q out", w.BuildUser)
		}
		if root {
			w.builder = identity{uid: uid, gid: gid}
		}
	}
	return nil
}

// settle makes the worker's folders where the users of builds can reach them.
func (w *Worker) settle() error {
	dir, err := filepath.Abs(w.Dir)
	if err != nil {
		return fmt.Errorf("the worker's folder: %w", err)
	}
	w.dir = dir
	if blocked := unreachable(dir); blocked != "" && (w.pool || w.builder.uid > 0) {
		sum := sha256.Sum256([]byte(dir))
		w.dir = filepath.Join("/var/cache/wheelrefinery", hex.EncodeToString(sum[:6]))
		w.Logger.Info("builds run as other users, who cannot reach the data folder: the worker's part is elsewhere",
			"folder", dir, "closed", blocked, "instead", w.dir)
	}
	who := w.plannerIdentity()
	for _, d := range []struct {
		name string
		who  identity
	}{{"", identity{uid: -1}}, {"work", identity{uid: -1}}, {"cache", who}, {"cache/uv", who}, {"cache/sdists", who}} {
		if err := ensureDir(w.path(d.name), 0o755, d.who); err != nil {
			return fmt.Errorf("the worker's folder: %w", err)
		}
	}
	return nil
}

// unreachable returns the folder above path, or path itself, that others may not pass; empty where there is none.
func unreachable(path string) string {
	for {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return path
		}
		up := filepath.Dir(path)
		if up == path {
			return ""
		}
		path = up
	}
}

func (w *Worker) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

// found is an interpreter. A program prints it.
type found struct {
	Tags
	Venv    bool   `json:"venv"`
	Headers string `json:"headers"` // the folder that should hold Python.h
	Has     bool   `json:"has_headers"`
	Stamp   string `json:"stamp"` // of the file, to know it again
}

const probe = `
import importlib.util, json, os, re, sys, sysconfig
h = sysconfig.get_path("include")
print(json.dumps({
    "interpreter": sys.executable, "python_version": "%d.%d.%d" % sys.version_info[:3],
    "venv": bool(importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")),
    "headers": h, "has_headers": os.path.exists(os.path.join(h, "Python.h")),
}))`

// interpreter chooses the Python that builds.
func (w *Worker) interpreter(ctx context.Context) (found, error) {
	var candidates []string
	if w.Python != "" {
		candidates = []string{w.Python}
	} else {
		candidates = append(candidates, "python3")
		for minor := 14; minor >= 9; minor-- {
			candidates = append(candidates, fmt.Sprintf("python3.%d", minor))
		}
		system, _ := filepath.Glob("/usr/bin/python3*") // the pattern is right
		candidates = append(candidates, system...)
	}
	var best *found
	var passed []string
	seen := map[string]bool{}
	for _, name := range candidates {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			if w.Python != "" {
				passed = append(passed, err.Error())
			}
			continue
		}
		if real, err := filepath.EvalSymlinks(path); err == nil && !strings.Contains(path, "/shims/") {
			if seen[real] {
				continue
			}
			seen[real] = true
		}
		f, err := w.probe(ctx, path)
		if err != nil {
			passed = append(passed, path+": "+err.Error())
			continue
		}
		if best == nil || f.Has && !best.Has {
			best = &f
		}
		if best.Has {
			break
		}
	}
	if best == nil {
		hint := "install python3 and python3-venv, or say which Python to use"
		if len(passed) > 0 {
			hint += " (" + strings.Join(passed, "; ") + ")"
		}
		return found{}, errors.New("no Python 3.9 or newer that can build: " + hint)
	}
	if len(passed) > 0 {
		w.Logger.Info("some Pythons are passed over", "reasons", strings.Join(passed, "; "))
	}
	if !best.Has {
		w.Logger.Warn("this Python has no headers: C extensions will not build. Install python3-dev (or python3-devel)",
			"python", best.Interpreter, "missing", filepath.Join(best.Headers, "Python.h"))
	}
	return *best, nil
}

// probe asks an interpreter, as the user that will build.
func (w *Worker) probe(ctx context.Context, path string) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-I", "-c", probe)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "LANG=C.UTF-8"}
	if who := w.plannerIdentity(); who.uid >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: []uint32{}},
		}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, fs.ErrPermission) {
		return found{}, errors.New("the user that builds may not run it")
	}
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		return found{}, fmt.Errorf("it cannot be run (%w) %s", err, said[strings.LastIndexByte(said, '\n')+1:])
	}
	var f found
	if err := json.Unmarshal(out, &f); err != nil {
		return found{}, fmt.Errorf("its answer cannot be read: %w", err)
	}
	if minor, err := strconv.Atoi(strings.Split(f.PythonVersion+".0.0", ".")[1]); err != nil || !strings.HasPrefix(f.PythonVersion, "3.") || minor < 9 {
		return found{}, fmt.Errorf("it is %s, and 3.9 or newer is needed", f.PythonVersion)
	}
	if !f.Venv {
		return found{}, errors.New("it has no venv: install python3-venv")
	}
	return f, nil
}

// install makes the virtual environment and lays out the planner, once for each set of versions and each interpreter.
func (w *Worker) install(ctx context.Context, f found) error {
	program, err := planner.ReadDir("planner")
	if err != nil {
		return fmt.Errorf("read the planner: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintln(sum, f.Interpreter, f.PythonVersion, requirements)
	w.venv = "venv-" + hex.EncodeToString(sum.Sum(nil)[:6])
	sources := map[string][]byte{}
	for _, e := range program {
		if sources[e.Name()], err = planner.ReadFile("planner/" + e.Name()); err != nil {
			return fmt.Errorf("read the planner: %w", err)
		}
		fmt.Fprintf(sum, "%s %d %s", e.Name(), len(sources[e.Name()]), sources[e.Name()])
	}
	w.program = "planner-" + hex.EncodeToString(sum.Sum(nil)[:6])

	lock, err := os.OpenFile(w.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the worker's folder: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the worker's folder: %w", err)
	}
	if _, err := os.Stat(w.path(w.program)); err != nil {
		if err := w.layOut(sources); err != nil {
			return fmt.Errorf("lay out the planner: %w", err)
		}
	}
	data, err := os.ReadFile(w.path(w.venv, "tags.json"))
	if err != nil {
		if data, err = w.makeVenv(ctx, f); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(data, &f.Tags); err != nil {
		return fmt.Errorf("%s cannot be read: remove %s and start again: %w", "tags.json", w.path(w.venv), err)
	}
	w.tags = f.Tags
	return nil
}

func (w *Worker) layOut(sources map[string][]byte) error {
	scratch, err := os.MkdirTemp(w.dir, ".planner-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for name, data := range sources {
		if err := os.WriteFile(filepath.Join(scratch, name), data, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	return os.Rename(scratch, w.path(w.program))
}

// makeVenv makes the environment under a temporary name. A virtual environment knows its own place only in scripts' first lines, which
// are not used: python is run by path, and uv is no script.
func (w *Worker) makeVenv(ctx context.Context, f found) ([]byte, error) {
	began := time.Now()
	w.Logger.Info("making the virtual environment for planning and building, once", "python", f.Interpreter, "folder", w.path(w.venv))
	scratch, err := os.MkdirTemp(w.dir, ".venv-")
	if err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w", err)
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w", err)
	}
	if _, err := w.trusted(ctx, f.Interpreter, "-m", "venv", scratch); err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w: install python3-venv", err)
	}
	python := filepath.Join(scratch, "bin", "python")
	args := append([]string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"}, requirements...)
	if _, err := w.trusted(ctx, python, args...); err != nil {
		return nil, fmt.Errorf("install uv and its companions with pip: %w: check the network, or pip's index, proxy and certificate settings", err)
	}
	tags, err := w.trusted(ctx, python, "-c", `
import json, re, sysconfig
from packaging.tags import interpreter_name, interpreter_version
print(json.dumps({"python_tag": interpreter_name() + interpreter_version(),
                  "platform_tag": re.sub(r"[.-]", "_", sysconfig.get_platform())}))`)
	if err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w", err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "tags.json"), tags, 0o644); err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w", err)
	}
	if err := os.Rename(scratch, w.path(w.venv)); err != nil {
		return nil, fmt.Errorf("make the virtual environment: %w", err)
	}
	w.Logger.Info("the virtual environment is there", "seconds", time.Since(began).Round(100*time.Millisecond).Seconds())
	return tags, nil
}

// trusted runs a program of ours as the worker itself, with the user's own settings, and returns what it prints.
func (w *Worker) trusted(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PYTHON") || strings.HasPrefix(v, "VIRTUAL_ENV=") || strings.Contains(strings.SplitN(v, "=", 2)[0], "TOKEN")
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.Join(stderr.lines(3), " / "))
	}
	return out, nil
}

// upstream is the index that the worker's user has configured for uv or pip, or pip's own default. It may hold credentials.
func (w *Worker) upstream(ctx context.Context) (string, error) {
	w.upstreamMu.Lock()
	defer w.upstreamMu.Unlock()
	if w.upstreamURL != "" {
		return w.upstreamURL, nil
	}
	for _, url := range []string{w.UpstreamIndex, os.Getenv("UV_DEFAULT_INDEX"), os.Getenv("UV_INDEX_URL"), os.Getenv("PIP_INDEX_URL")} {
		if url != "" {
			w.upstreamURL = url
			return url, nil
		}
	}
	out, err := w.trusted(ctx, w.path(w.venv, "bin", "python"), "-c", `
import subprocess, sys
done = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True)
if done.returncode == 0 and done.stdout.strip():
    print(done.stdout.strip())
else:
    from pip._internal.models.index import PyPI
    print(PyPI.simple_url)`)
	if err != nil {
		return "", fmt.Errorf("ask pip for its index: %w", err)
	}
	w.upstreamURL = strings.TrimSpace(string(out))
	return w.upstreamURL, nil
}

// Variables that say how the network is reached. They are all that a command sees of the worker's own environment.
var networkVariables = []string{
	"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS",
	"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
}

// network collects them. Of the certificate files, OpenSSL and uv read only the first.
func network() map[string]string {
	found := map[string]string{}
	for _, name := range networkVariables {
		if v := os.Getenv(name); v != "" {
			found[name] = v
		}
	}
	for _, name := range []string{"PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} {
		if found["SSL_CERT_FILE"] == "" && found[name] != "" {
			found["SSL_CERT_FILE"] = found[name]
		}
	}
	direct := "localhost,127.0.0.1,::1"
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		if v := os.Getenv(name); v != "" {
			direct += "," + v
		}
	}
	found["NO_PROXY"], found["no_proxy"] = direct, direct
	return found
}

// clean removes the work folders of workers that are gone.
func (w *Worker) clean() {
	entries, err := os.ReadDir(w.path("work"))
	if err != nil {
		w.Logger.Warn("old work folders cannot be listed", "error", err)
		return
	}
	for _, e := range entries {
		// pid, when that process started, something random
		parts := strings.Split(e.Name(), "-")
		if len(parts) == 3 && started(parts[0]) != parts[1] {
			if err := removeAll(w.path("work", e.Name())); err != nil {
				w.Logger.Warn("an old work folder cannot be removed", "folder", e.Name(), "error", err)
			}
		}
	}
}

// sourceAge is how long a source distribution is kept after its last use.
const sourceAge = 30 * 24 * time.Hour

// forget removes sources from the cache that were not used for long; the planner touches what it uses.
func (w *Worker) forget() {
	err := filepath.WalkDir(w.path("cache", "sdists"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && time.Since(info.ModTime()) > sourceAge {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) { // another worker's start was quicker
			return nil
		}
		return err
	})
	if err != nil {
		w.Logger.Warn("old sources cannot be removed from the cache", "error", err)
	}
}

// started says when a process was started, in ticks since the machine was. Empty: there is no such process.
func started(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat") // pid (name) state ppid …, it is the 22nd field
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if err != nil || len(fields) < 20 {
		return ""
	}
	return fields[19]
}
