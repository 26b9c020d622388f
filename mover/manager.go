package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/mover/controller"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/heap"
)

// What the Deployment tells the manager about itself.
const (
	envPodName     = "POD_NAME"
	envWorkerImage = "WORKER_IMAGE"
	// managerContainer is the container of the manager in its pod.
	managerContainer = "manager"
)

// managerOptions are the flags of `blockmover manager`.
type managerOptions struct {
	namespace     string
	configFile    string
	workerImage   string
	metricsAddr   string
	probeAddr     string
	leaderElect   bool
	clientQPS     float32
	clientBurst   int
	gracefulClose time.Duration
}

func newManagerCommand() *cobra.Command {
	var o managerOptions
	cmd := &cobra.Command{
		Use:   "manager",
		Short: "Answer Velero's DataUploads and DataDownloads",
		Long: "Manager runs in Velero's namespace. It exposes the volumes of the DataUploads and\n" +
			"DataDownloads that name this data mover to mover pods, and releases what they used.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return o.run(signals.SetupSignalHandler()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.namespace, "namespace", "velero", "`namespace` of Velero")
	flags.StringVar(&o.configFile, "config", "", "`file` with the configuration; none is the defaults")
	flags.StringVar(&o.workerImage, "worker-image", os.Getenv(envWorkerImage),
		"`image` of mover pods; the default is in $"+envWorkerImage+", or else the image of the manager's own pod, $"+envPodName)
	flags.StringVar(&o.metricsAddr, "metrics-bind-address", ":8080", "`address` of the metrics; 0 is off")
	flags.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081", "`address` of /healthz and /readyz; 0 is off")
	flags.BoolVar(&o.leaderElect, "leader-elect", true, "let only one of several managers work")
	flags.Float32Var(&o.clientQPS, "kube-api-qps", 50, "requests per second to the API server")
	flags.IntVar(&o.clientBurst, "kube-api-burst", 100, "requests at once to the API server")
	flags.DurationVar(&o.gracefulClose, "shutdown-timeout", 20*time.Second, "`time` to finish what is being reconciled at the end")
	return cmd
}

func (o *managerOptions) run(ctx context.Context) error {
	heap.KeepBelow()
	logger := zap.New(zap.UseDevMode(false))
	ctrl.SetLogger(logger)
	klog.SetLogger(logger)

	settings, err := config.Follow(o.configFile, logger.WithName("config"))
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := controller.AddToScheme(scheme); err != nil {
		return fmt.Errorf("register kinds: %w", err)
	}
	cacheOptions, err := controller.CacheOptions(o.namespace)
	if err != nil {
		return err
	}
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find Kubernetes API: %w", err)
	}
	restConfig.QPS, restConfig.Burst = o.clientQPS, o.clientBurst
	audiences, err := apiAudiences(restConfig)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         cacheOptions,
		NewCache:                      controller.NewCache,
		Metrics:                       server.Options{BindAddress: o.metricsAddr},
		HealthProbeBindAddress:        o.probeAddr,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              "blockmover-manager",
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &o.gracefulClose,
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	if err := errors.Join(mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return fmt.Errorf("add health checks: %w", err)
	}
	if o.workerImage == "" {
		if o.workerImage, err = ownImage(ctx, mgr.GetAPIReader(), client.ObjectKey{Namespace: o.namespace, Name: os.Getenv(envPodName)}); err != nil {
			return err
		}
	}
	clientset, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("connect to Kubernetes API: %w", err)
	}
	err = controller.Setup(ctx, mgr, controller.Options{
		Namespace:    o.namespace,
		WorkerImage:  o.workerImage,
		Settings:     settings,
		APIAudiences: audiences,
		Logs:         exposer.PodLogs{Clientset: clientset},
	})
	if err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run manager: %w", err)
	}
	return nil
}

// ownImage returns the image of the manager's container in its own pod. Only the pod
// knows it for sure: kustomize overlays, Helm values and admission webhooks can set it.
func ownImage(ctx context.Context, r client.Reader, key client.ObjectKey) (string, error) {
	if key.Name == "" {
		return "", fmt.Errorf("find worker image: set --worker-image, or $%s to the name of the manager's pod", envPodName)
	}
	pod := &corev1.Pod{}
	if err := r.Get(ctx, key, pod); err != nil {
		return "", fmt.Errorf("find worker image: get pod %s, which $%s names: %w", key, envPodName, err)
	}
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == managerContainer {
			return c.Image, nil
		}
	}
	return "", fmt.Errorf("find worker image: pod %s has no container named %s: set --worker-image", key, managerContainer)
}

// apiAudiences returns the audiences of tokens that the API server accepts. The API server
// does not publish them, but the manager's own token names them. The usual ones are added
// for a manager that uses a certificate. The token is not verified: the API server does.
func apiAudiences(restConfig *rest.Config) ([]string, error) {
	usual := []string{"https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local", "kubernetes.default.svc"}
	token := restConfig.BearerToken
	if restConfig.BearerTokenFile != "" {
		b, err := os.ReadFile(restConfig.BearerTokenFile)
		if err != nil {
			return nil, fmt.Errorf("read service account token: %w", err)
		}
		token = string(b)
	}
	claims := jwt.RegisteredClaims{}
	_, parts, err := jwt.NewParser().ParseUnverified(strings.TrimSpace(token), &claims)
	switch {
	case parts == nil:
		return usual, nil // not a service account token
	case err != nil:
		return nil, fmt.Errorf("read service account token: %w", err)
	case len(claims.Audience) == 0:
		return nil, errors.New("read service account token: it has no audience")
	}
	return append(usual, claims.Audience...), nil
}
