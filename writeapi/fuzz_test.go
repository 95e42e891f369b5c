package writeapi_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/writeapi"
)

// Whatever POST /runs is sent, as JSON or as a form, it is refused as the contract says, or becomes a command that the bus takes and
// gives back unchanged. Nothing that was sent is echoed, and nothing is an internal error.
func FuzzSubmitRun(f *testing.F) {
	for _, body := range []string{
		`{"requirements":"flask==3.0\n","build":"missing"}`,
		`{"requirements":"a","constraints":"b<2","python":"3.11","platform":"linux_x86_64","strategy":"upgrade","build":"names","names":["Flask"]}`,
		`{"requirements":"\u0000"}`, `{"requirements":"-e ."}`, `{}`, `[]`, `{"requirements":1}`,
	} {
		f.Add([]byte(body), "application/json")
	}
	form := "--x\r\nContent-Disposition: form-data; name=\"requirements\"; filename=\"r.txt\"\r\n\r\nflask==3.0\r\n--x\r\n" +
		"Content-Disposition: form-data; name=\"names\"\r\n\r\nflask\r\n--x--\r\n"
	f.Add([]byte(form), "multipart/form-data; boundary=x")
	f.Add([]byte(strings.Replace(form, "names", "requirements", 1)), "multipart/form-data; boundary=x")
	f.Add([]byte(form[:40]), "multipart/form-data; boundary=x")
	f.Add([]byte("--x--"), `multipart/form-data; boundary="x"; boundary=y`)
	store, err := wheelstore.Open(filepath.Join(f.TempDir(), "wheels"))
	if err != nil {
		f.Fatal(err)
	}
	var sent []commands.Command
	var trouble error
	bare, err := api.New(api.Options{Logger: slog.New(slog.DiscardHandler)}, struct {
		reads
		*writeapi.Server
	}{reads{}, writeapi.New(writeapi.Options{
		Send: func(_ context.Context, m commands.Meta, c commands.Command) error {
			sent = append(sent, c)
			payload, err := commands.Encode(m, c)
			if err != nil {
				sent = nil // a refusal
				return err
			}
			_, again, err := commands.Decode(payload)
			if err != nil {
				trouble = fmt.Errorf("the bus gives %s back as %w", payload, err)
			} else if second, err := commands.Encode(m, again); err != nil || !bytes.Equal(payload, second) {
				trouble = fmt.Errorf("%s became %s, %w", payload, second, err)
			}
			return nil
		},
		Await: func(uuid.UUID) (func(context.Context) (eventlog.Outcome, error), func()) {
			return func(context.Context) (eventlog.Outcome, error) { return eventlog.Outcome{}, context.DeadlineExceeded }, func() {}
		},
		Wheels: store, IndexURL: func(context.Context) (string, error) { return "", nil }, Logger: slog.New(slog.DiscardHandler),
	})}, http.NotFoundHandler())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		sent, trouble = nil, nil
		h := apitest.Check(t, bare)
		r := httptest.NewRequest("POST", "/runs", bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Prefer", "respond-async")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch {
		case trouble != nil:
			t.Fatal(trouble)
		case w.Code == 202 && len(sent) == 1:
		case w.Code >= 400 && w.Code < 500 && len(sent) == 0:
		default:
			t.Fatalf("%d with %d commands: %s", w.Code, len(sent), w.Body)
		}
	})
}
