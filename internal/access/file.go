package access

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/internal/fault"
)

const (
	mostFile   = 1 << 20
	mostTokens = 1000
	lookEvery  = time.Second
)

// NewToken returns a new random token.
func NewToken() string { return rand.Text() + rand.Text() } // 260 bits

// Line is the line of a tokens file for a token.
func Line(name string, scopes []Scope, token string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	names := make([]string, len(scopes))
	for i, s := range scopes {
		names[i] = string(s)
	}
	if _, err := parseScopes(strings.Join(names, ",")); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(token))
	return name + " " + strings.Join(names, ",") + " " + hex.EncodeToString(sum[:]), nil
}

// ReadFile reads a tokens file. Each line names a token, its scopes separated by commas, and the SHA-256 of the token in hex, separated by
// blanks; empty lines and those that begin with # are passed over. Nobody but its owner may be able to write the file.
func ReadFile(path string) ([]Who, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "TOKENS_FILE cannot be read: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fault.New(fault.Invalid, "TOKENS_FILE cannot be read: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fault.New(fault.Invalid, "TOKENS_FILE can be written by others than its owner: chmod go-w it")
	}
	data, err := io.ReadAll(io.LimitReader(f, mostFile+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "TOKENS_FILE cannot be read: %w", err)
	}
	return parse(data)
}

func parse(data []byte) ([]Who, error) {
	bad := func(line int, format string, args ...any) error {
		return fault.New(fault.Invalid, "TOKENS_FILE, line %d: %s", line, fmt.Sprintf(format, args...))
	}
	if len(data) > mostFile {
		return nil, fault.New(fault.TooLarge, "TOKENS_FILE is larger than %d bytes", mostFile)
	}
	all := []Who{}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		fields := strings.Fields(string(line))
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 {
			return nil, bad(n, "write a name, scopes separated by commas, and the SHA-256 of the token; `refinery token new` prints such a line")
		}
		who := Who{Name: fields[0], Named: true}
		if err := checkName(who.Name); err != nil {
			return nil, bad(n, "%v", err)
		}
		var err error
		if who.Scopes, err = parseScopes(fields[1]); err != nil {
			return nil, bad(n, "%v", err)
		}
		sum, err := hex.DecodeString(fields[2])
		if err != nil || len(sum) != sha256.Size {
			return nil, bad(n, "the third field is not a SHA-256 in hex")
		}
		who.digest = digest(sum)
		if slices.ContainsFunc(all, func(w Who) bool { return w.Name == who.Name || w.digest == who.digest }) {
			return nil, bad(n, "the name or the token is there already")
		}
		if all = append(all, who); len(all) > mostTokens {
			return nil, bad(n, "more than %d tokens", mostTokens)
		}
	}
	return all, nil
}

var nameForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

// reserved are actors of their own.
var reserved = []string{Operator, Reader, "local", "worker"}

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return fault.New(fault.Invalid, "a token's name is a letter and up to 63 letters, digits, '.', '_' or '-'")
	}
	if slices.Contains(reserved, strings.ToLower(name)) {
		return fault.New(fault.Invalid, "the names %s are taken", strings.Join(reserved, ", "))
	}
	return nil
}

func parseScopes(text string) ([]Scope, error) {
	var scopes []Scope
	for s := range strings.SplitSeq(text, ",") {
		if !slices.Contains(Scopes, Scope(s)) {
			return nil, fault.New(fault.Invalid, "the scopes are read, write, worker and admin")
		}
		if !slices.Contains(scopes, Scope(s)) {
			scopes = append(scopes, Scope(s))
		}
	}
	return scopes, nil
}

// stamp changes with a file.
type stamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.ModTime(), info.Size()}, nil
}

// reload reads the tokens file again when it has changed, which it looks for once a second. From a file that cannot be read nothing is
// taken: the tokens stay as they were, and the log says so.
func (g *Guard) reload() {
	if g.config.File == "" || !g.fileMu.TryLock() {
		return
	}
	defer g.fileMu.Unlock()
	if g.now().Sub(g.looked) < lookEvery {
		return
	}
	g.looked = g.now()
	now, err := stampOf(g.config.File)
	if now == g.changed {
		return
	}
	g.changed = now
	var named []Who
	if err == nil {
		named, err = ReadFile(g.config.File)
	}
	if err != nil {
		g.config.Logger.Error("the tokens file was changed and is not used: the tokens before hold on", "error", err)
		return
	}
	g.named.Store(&named)
	g.config.Logger.Info("the tokens file was read again", "tokens", len(named))
}
