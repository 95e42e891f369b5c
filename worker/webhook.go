package worker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
)

// Drain has slots that pause after a failure ask for jobs at once. The others wait at the control plane already.
func (w *Worker) Drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.endRound != nil {
		w.endRound()
		w.round, w.endRound = nil, nil
	}
}

// asking is a context for pauses between requests for jobs: it ends with ctx, or when somebody says that there are some.
func (w *Worker) asking(ctx context.Context) context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.round == nil {
		w.round, w.endRound = context.WithCancel(ctx)
	}
	return w.round
}

// mostWebhook bounds the body of a call, in bytes.
const mostWebhook = 4 << 10

// Webhook is the handler of a control plane's wake-ups: POST {"action": "drain"} with the token in X-Worker-Token.
func (w *Worker) Webhook() http.Handler {
	token := sha256.Sum256([]byte(w.Token))
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		refuse := func(status int, detail string) {
			rw.Header().Set("Content-Type", "application/problem+json")
			rw.WriteHeader(status)
			fmt.Fprintf(rw, `{"type":"about:blank","title":%q,"status":%d,"detail":%q}`+"\n", http.StatusText(status), status, detail)
		}
		offer := sha256.Sum256([]byte(r.Header.Get("X-Worker-Token")))
		var call struct {
			Action string `json:"action"`
		}
		switch {
		case r.Method != http.MethodPost:
			rw.Header().Set("Allow", http.MethodPost)
			refuse(http.StatusMethodNotAllowed, "Only POST is known here.")
		case w.Token != "" && subtle.ConstantTimeCompare(offer[:], token[:]) != 1:
			refuse(http.StatusUnauthorized, "Send the worker's token in X-Worker-Token.")
		case json.NewDecoder(http.MaxBytesReader(rw, r.Body, mostWebhook)).Decode(&call) != nil || call.Action != "drain":
			refuse(http.StatusBadRequest, `The body is {"action": "drain"}.`)
		default:
			w.Logger.Info("woken by the webhook")
			w.Drain()
			rw.WriteHeader(http.StatusNoContent)
		}
	})
}
