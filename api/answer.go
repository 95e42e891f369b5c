package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// Encoded is a body that is JSON already. With Content-Encoding in the header, it is compressed as well.
type Encoded []byte

// Answer is a response that fits every operation of the strict server: for those whose status or headers are only known while they run.
// The body is sent as JSON, a Problem as such, a string as plain text; nil means none.
type Answer struct {
	Status int
	Header http.Header
	Body   any
}

func (a Answer) write(w http.ResponseWriter) error {
	var body []byte
	contentType := "application/json"
	switch b := a.Body.(type) {
	case nil:
		contentType = ""
	case Encoded:
		body = b
	case string:
		body, contentType = []byte(b), "text/plain; charset=utf-8"
	default:
		if _, ok := b.(Problem); ok {
			contentType = "application/problem+json"
		}
		var err error
		if body, err = json.Marshal(b); err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		body = append(body, '\n')
	}
	h := w.Header()
	for name, values := range a.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	if contentType != "" {
		h.Set("Content-Type", contentType)
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(a.Status)
	_, err := w.Write(body)
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// One line for each operation; an operation without one does not compile where it returns an Answer.

func (a Answer) VisitAppendLogResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitBulkBuildsResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitCancelBuildResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitCancelRunResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitClearQueueResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitCreateHintResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitDeleteHintResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitEnqueueResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a Answer) VisitGetBuildResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a Answer) VisitGetBulkResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a Answer) VisitGetCommandResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitGetConfigResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitGetFailureStatsResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a Answer) VisitGetHealthResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitGetHintResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a Answer) VisitGetLogResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a Answer) VisitGetManifestResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitGetPackageResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitGetPlanByIDResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitGetPlanResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a Answer) VisitGetQueueStatsResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a Answer) VisitGetReadyResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a Answer) VisitGetRunResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a Answer) VisitGetSlowestStatsResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a Answer) VisitGetSummaryResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitGetThroughputStatsResponse(w http.ResponseWriter) error { return a.write(w) }
func (a Answer) VisitHeartbeatResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitImportHintsResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitLeaseResponse(w http.ResponseWriter) error              { return a.write(w) }
func (a Answer) VisitListArtifactsResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a Answer) VisitListAuditResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitListBuildsResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitListHintsResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitListHistoryResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitListPackagesResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a Answer) VisitListPlansResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitListProjectionsResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a Answer) VisitListQueueResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitListRecentResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitListRunsResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a Answer) VisitListWorkersResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitPauseQueueResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitPrioritiseBuildResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a Answer) VisitPutArtifactResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitPutHintResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a Answer) VisitRebuildProjectionResponse(w http.ResponseWriter) error  { return a.write(w) }
func (a Answer) VisitRecordManifestResponse(w http.ResponseWriter) error     { return a.write(w) }
func (a Answer) VisitRecordPlanResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitRecordResultResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a Answer) VisitRecordSmokeResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitResumeQueueResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitRetryBuildResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitRetryDeadLetterResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a Answer) VisitSearchLogsResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a Answer) VisitSkipDeadLetterResponse(w http.ResponseWriter) error     { return a.write(w) }
func (a Answer) VisitSmokeWorkerResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a Answer) VisitSubmitRunResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a Answer) VisitTriggerWorkersResponse(w http.ResponseWriter) error     { return a.write(w) }
func (a Answer) VisitYankArtifactResponse(w http.ResponseWriter) error       { return a.write(w) }
