/*
 * Finds the cells inside the annotations of the open image with cellmill and adds them as detections.
 *
 * Draw annotations, select some of them or none (none: all are taken), then run this from Automate > Project scripts.
 * The command that is run stands in cellmill/command.json beside the project file; edit it to use another computer's
 * installation or the container of infra/Dockerfile.qupath.
 */
import groovy.json.JsonSlurper
import qupath.lib.io.PathIO

def entry = getProjectEntry()
if (entry == null) {
    println 'cellmill: open an image of the project first.'
    return
}
def drawn = getSelectedObjects().findAll { it.isAnnotation() }
if (drawn.isEmpty()) {
    drawn = getAnnotationObjects()
}
if (drawn.isEmpty()) {
    println 'cellmill: draw at least one annotation around the cells you want.'
    return
}
def base = buildFilePath(PROJECT_BASE_DIR, 'cellmill')
mkdirs(buildFilePath(base, 'annotations'))
exportObjectsToGeoJson(drawn, buildFilePath(base, 'annotations', entry.getID() + '.geojson'), 'FEATURE_COLLECTION')

def command = new JsonSlurper().parse(new File(base, 'command.json'), 'UTF-8').command.collect { it.toString() }
command += ['--project', buildFilePath(PROJECT_BASE_DIR), '--annotations', '--image', entry.getID(),
            '--insert', 'files', '--replace']
println 'cellmill: ' + command.join(' ')
def process = new ProcessBuilder(command).redirectErrorStream(true).start()
process.getInputStream().eachLine('UTF-8') { println it }
int code = process.waitFor()
if (code != 0) {
    println "cellmill: stopped with code ${code}; the lines above say why. Nothing was added."
    return
}
def folder = new File(buildFilePath(base, 'results', entry.getID()))
def present = getCurrentHierarchy().getAllObjects(false).collect { it.getID().toString() } as Set
int added = 0
new JsonSlurper().parse(new File(folder, 'index.json'), 'UTF-8').parts.each { name ->
    def objects = PathIO.readObjects(new File(folder, name)).findAll { !present.contains(it.getID().toString()) }
    addObjects(objects)
    added += objects.size()
}
fireHierarchyUpdate()
println "cellmill: added ${added} cells."
