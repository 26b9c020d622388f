package scenarios

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	prometheusv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// monitor is Prometheus from the start of the scenarios to their end, or nil if the machine has none.
var monitor *kit.Prometheus

func startMonitor(ctx context.Context, k *kit.Kit) error {
	var err error
	if monitor, err = k.StartPrometheus(ctx); errors.Is(err, kit.ErrNoPrometheus) {
		return nil
	}
	return err
}

// dashboardHasData wants a number for each query of the dashboard, and no alert rule that cannot be evaluated.
func (s *scenario) dashboardHasData() {
	s.Helper()
	if monitor == nil {
		s.Log("the dashboard is not looked at: " + kit.ErrNoPrometheus.Error())
		return
	}
	panels, err := s.kit.DashboardPanels()
	require.NoError(s, err)
	require.Greater(s, len(panels), 15)
	require.NoError(s, s.kit.Wait(s.ctx, "data for the dashboard", 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		var empty []string
		for _, panel := range panels {
			found, err := monitor.HasData(ctx, panel.Query)
			if err != nil {
				return false, "", fmt.Errorf("panel %s: %w", panel.Title, err)
			}
			if !found {
				empty = append(empty, panel.Title)
			}
		}
		return len(empty) == 0, "no data for " + strings.Join(empty, ", "), nil
	}))
	rules, err := monitor.Rules(s.ctx)
	require.NoError(s, err)
	alerts := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			alert, ok := rule.(prometheusv1.AlertingRule)
			require.True(s, ok, "%T", rule)
			require.EqualValues(s, prometheusv1.RuleHealthGood, alert.Health, "%s: %s", alert.Name, alert.LastError)
			s.Logf("alert %s: %s", alert.Name, alert.State)
			alerts++
		}
	}
	require.Positive(s, alerts)
}
