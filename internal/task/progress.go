package task

import (
	"encoding/json"
	"fmt"
	"strings"
)

// progressMessage and reportMessage mark the lines of a worker's log that are a Progress and a
// Report.
const (
	progressMessage = "Progress"
	reportMessage   = "Report"
)

// Progress is a line in the log of a mover pod. The manager reads the last one. So a mover pod
// needs no right to write to the API.
type Progress struct {
	// Done and Total are bytes of the volume. Total is 0 until it is known.
	Done  int64 `json:"bytesDone"`
	Total int64 `json:"bytesTotal"`
	// Read is what this mover pod has read from the volume.
	Read int64 `json:"bytesRead"`
	// Waiting says what the worker waits for, such as a service that does not answer.
	Waiting string `json:"waiting,omitempty"`
	// Held is set while a restore in place has the device to itself and waits for the
	// VolumeSnapshot of the volume.
	Held bool `json:"held,omitempty"`
}

// progressLine is the form of a Progress among the lines of a structured log.
type progressLine struct {
	Message string `json:"msg"`
	Progress
}

// Line renders the progress, without a line feed.
func (p Progress) Line() (string, error) {
	b, err := json.Marshal(progressLine{progressMessage, p})
	if err != nil {
		return "", fmt.Errorf("render progress: %w", err)
	}
	return string(b), nil
}

// LastProgress returns the last Progress in a log. ok is false if there is none that makes
// sense.
func LastProgress(log string) (p Progress, ok bool) {
	prefix := `{"msg":"` + progressMessage + `",`
	for line := range strings.SplitSeq(log, "\n") {
		var l progressLine
		if !strings.HasPrefix(line, prefix) || json.Unmarshal([]byte(line), &l) != nil {
			continue
		}
		if l.Done < 0 || l.Total < 0 || l.Read < 0 || l.Done > l.Total {
			continue
		}
		p, ok = l.Progress, true
	}
	return p, ok
}

// ReportLine renders the line of the log that has a report, without a line feed. The text is that of
// Report.Encode.
func ReportLine(text string) string { return reportPrefix + text + "}" }

const reportPrefix = `{"msg":"` + reportMessage + `","report":`

// LastReport returns the last report in a log. ok is false if there is none.
func LastReport(log string) (report Report, ok bool) {
	for line := range strings.SplitSeq(log, "\n") {
		text, is := strings.CutPrefix(line, reportPrefix)
		if !is {
			continue
		}
		if r, err := DecodeReport(strings.TrimSuffix(text, "}")); err == nil {
			report, ok = r, true
		}
	}
	return report, ok
}
